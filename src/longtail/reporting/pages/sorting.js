"use strict";
/* Makes the heads of a table's columns buttons; sort(column, 1 or -1) is called when one is pressed. */
function sorting(table, sort) {
  let column = -1, direction = 1;
  [...table.tHead.rows[0].cells].forEach((head, k) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      direction = column === k ? -direction : 1;
      column = k;
      for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      sort(column, direction);
    });
  });
}
const collator = new Intl.Collator(undefined, { numeric: true });
/* Tables whose rows are all on the page: a cell sorts by its data-value, or else by its text. */
for (const table of document.querySelectorAll("table.sorts")) {
  const body = table.tBodies[0], rows = [...body.rows];
  const value = (row, k) => row.cells[k].dataset.value ?? row.cells[k].textContent.trim();
  sorting(table, (k, way) => {
    const compare = (a, b) => isFinite(a) && isFinite(b) ? a - b : collator.compare(a, b);
    body.append(...rows.sort((a, b) => way * compare(value(a, k), value(b, k))));
  });
  if (rows.length < 12) continue;
  const tools = document.createElement("div"), label = document.createElement("label");
  const input = document.createElement("input"), found = document.createElement("span");
  tools.className = "tools";
  label.textContent = "Filter";
  label.htmlFor = input.id = table.id + "-filter";
  input.type = "search";
  input.autocomplete = "off";
  input.spellcheck = false;
  found.className = "soft";
  found.setAttribute("role", "status");
  input.addEventListener("input", () => {
    const want = input.value.trim().toLowerCase();
    for (const row of rows) row.hidden = !row.textContent.toLowerCase().includes(want);
    found.textContent = `${rows.filter(row => !row.hidden).length} of ${rows.length} rows`;
  });
  tools.append(label, input, found);
  table.closest(".box").before(tools);
}
