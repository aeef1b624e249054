"""What each subcommand does, in order: one module per subcommand, `run(config, …)` returning an artifact."""
