"""The report: artifacts of a work folder → a page as plain data → HTML or Markdown.

`collecting` finds the artifacts, `assembly` makes sections of them (`accuracy`, `uncertainty`, `training`, `sources`,
`generic`), `html` and `markdown` write the page. Whatever comes from disk is taken as text and escaped by the writers.
"""
