"use strict";
// Sorting by a column; without scripts the table stays in the order of the evaluation.
const text = new Intl.Collator(undefined, { numeric: true });

function sort(table, column, descending) {
  const key = (row) => row.cells[column].dataset.value;
  const number = table.tHead.rows[0].cells[column].dataset.kind === "number";
  const order = number ? (a, b) => key(a) - key(b) : (a, b) => text.compare(key(a), key(b));
  const rows = Array.from(table.tBodies[0].rows);
  const known = rows.filter((row) => key(row) !== "").sort((a, b) => (descending ? order(b, a) : order(a, b)));
  const missing = rows.filter((row) => key(row) === "");
  table.tBodies[0].append(...known, ...missing);
}

for (const table of document.querySelectorAll("table.sortable")) {
  const headers = Array.from(table.tHead.rows[0].cells);
  headers.forEach((header, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const first = header.dataset.kind === "number" ? "descending" : "ascending";
      const second = first === "ascending" ? "descending" : "ascending";
      const direction = header.getAttribute("aria-sort") === first ? second : first;
      headers.forEach((other) => other.removeAttribute("aria-sort"));
      header.setAttribute("aria-sort", direction);
      sort(table, column, direction === "descending");
    });
  });
}

// What is folded would be missing on paper.
addEventListener("beforeprint", () => {
  document.querySelectorAll("details").forEach((one) => { one.open = true; });
});
