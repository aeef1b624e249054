"use strict";
// Sorting: the head of each column becomes a button; a third press gives the first order back.
const collator = new Intl.Collator(undefined, { numeric: true });

function key(cell) {
  return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim();
}

function isMissing(value) {
  return value === "" || value === "–";
}

function compare(first, second) {
  return typeof first === "number" && typeof second === "number"
    ? first - second
    : collator.compare(String(first), String(second));
}

function sort(table, column, order) {
  const sign = order === "descending" ? -1 : 1;
  const rows = table.original.map((row) => [row, key(row.cells[column])]);
  if (order !== "none") {
    rows.sort(([, first], [, second]) => {
      const missing = isMissing(first) - isMissing(second);
      return missing || sign * compare(first, second);
    });
  }
  table.tBodies[0].append(...rows.map(([row]) => row));
  for (const head of table.tHead.rows[0].cells) {
    head.setAttribute("aria-sort", "none");
  }
  table.tHead.rows[0].cells[column].setAttribute("aria-sort", order);
}

for (const table of document.querySelectorAll("table[data-sortable]")) {
  table.original = [...table.tBodies[0].rows];
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const orders = head.classList.contains("number")
      ? ["descending", "ascending", "none"]
      : ["ascending", "descending", "none"];
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    head.setAttribute("aria-sort", "none");
    button.addEventListener("click", () => {
      const next = (orders.indexOf(head.getAttribute("aria-sort")) + 1) % orders.length;
      sort(table, column, orders[next]);
    });
  });
}
