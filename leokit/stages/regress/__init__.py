"""`leokit regress`: the sine and line experiment of Section 4.1."""
