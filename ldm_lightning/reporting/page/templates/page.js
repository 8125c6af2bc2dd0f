"use strict";

function workTable(table) {
  const [field, choice] = [document.querySelector("#filter"), document.querySelector("#state")];
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => ({ row, text: row.textContent.toLowerCase() }));

  function filter() {
    const words = field.value.toLowerCase().split(/\s+/);
    let shown = 0;
    for (const { row, text } of rows) {
      const fits = words.every((word) => text.includes(word));
      row.hidden = !fits || (choice.value !== "" && row.dataset.state !== choice.value);
      shown += !row.hidden;
    }
    document.querySelector("#count").value = `${shown} of ${rows.length} shown`;
  }

  function compare(a, b) {
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  }

  function sort(heading) {
    const falling = heading.ariaSort === "ascending";
    for (const other of heading.parentNode.cells) other.ariaSort = "none";
    heading.ariaSort = falling ? "descending" : "ascending";
    const key = (row) => row.cells[heading.cellIndex].dataset.order;
    const sorted = [...body.rows].sort((one, two) => {
      const [a, b] = [key(one), key(two)];
      if (a === "" || b === "") return (a === "") - (b === "");
      return falling ? compare(b, a) : compare(a, b);
    });
    body.append(...sorted);
  }

  for (const heading of table.querySelectorAll("thead th")) {
    heading.firstElementChild.addEventListener("click", () => sort(heading));
  }
  field.addEventListener("input", filter);
  choice.addEventListener("change", filter);
  document.querySelector("#extra")?.addEventListener("click", ({ currentTarget }) => {
    currentTarget.ariaPressed = String(table.classList.toggle("every"));
  });
  filter();
}

function workComparison(comparison) {
  for (const control of comparison.querySelectorAll("[data-property]")) {
    control.addEventListener("input", () => {
      const { property, unit = "" } = control.dataset;
      if (property === "view") comparison.dataset.view = control.value;
      else comparison.style.setProperty(property, control.value + unit);
      if (property === "--zoom") comparison.classList.toggle("zoomed", control.value !== "0");
    });
  }
  const line = comparison.querySelector("[data-property='--split']");
  const drag = (event) => {
    const tile = event.target.closest(".tile");
    if (!tile || event.buttons !== 1 || comparison.dataset.view !== "slider") return;
    const { left, width } = tile.getBoundingClientRect();
    line.value = (100 * (event.clientX - left)) / width;
    line.dispatchEvent(new Event("input"));
  };
  comparison.addEventListener("pointerdown", drag);
  comparison.addEventListener("pointermove", drag);
}

const table = document.querySelector("#runs");
if (table) workTable(table);
document.querySelectorAll(".comparison").forEach(workComparison);
