"""`leokit table`."""

from leokit.cli.render import Output, TableData
from leokit.config import TableConfig


def command(config: TableConfig, output: Output) -> None:
    """Set finished evaluations beside the paper's Table 1 or 2, and keep that as Markdown, CSV and JSON.

    Runs that differ in nothing but the seed become one row: their mean, the 95 % interval over episodes and the
    standard deviation over seeds.

    Example: leokit table 1
    """
    from leokit.stages import paper_table

    if output.dry_run:
        chosen = [str(entry.folder) for entry in paper_table.choose(config, output.note)]
        rows = [[folder] for folder in chosen]
        output.result({"evaluations": chosen}, [TableData("Would be made of", [""], rows, numeric=False)])
        return
    made = paper_table.run(config, on_message=output.note)
    content = made.content
    columns = [
        name.replace(" ± ", " ±\n").replace(" over ", " over\n").replace("sd ", "sd\n") for name in paper_table.header()
    ]
    rows = [paper_table.cells(row) for row in content["rows"]]
    data = {"out": str(made.folder), "id": made.id, **content}
    table = TableData(paper_table.title(content), columns, rows)
    sources = [f"{name}: {cite}." for name, cite in content["sources"].items()]
    output.result(data, [table], [*content["sentences"], *sources, f"In {made.folder}."])
