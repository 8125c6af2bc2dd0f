"use strict";
const body = document.querySelector("#runs tbody");
const rows = [...body.rows].map((row) => ({ row, text: row.textContent.toLowerCase() }));

function filter() {
  const words = document.querySelector("#filter").value.toLowerCase().split(/\s+/);
  const state = document.querySelector("#state").value;
  let shown = 0;
  for (const { row, text } of rows) {
    const fits = words.every((word) => text.includes(word));
    row.hidden = !fits || (state !== "" && row.dataset.state !== state);
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

for (const heading of document.querySelectorAll("#runs thead th")) {
  heading.firstElementChild.addEventListener("click", () => sort(heading));
}
document.querySelector("#filter").addEventListener("input", filter);
document.querySelector("#state").addEventListener("change", filter);
document.querySelector("#extra")?.addEventListener("click", ({ currentTarget }) => {
  const shown = document.querySelector("#runs").classList.toggle("all-settings");
  currentTarget.ariaPressed = String(shown);
});

for (const comparison of document.querySelectorAll(".comparison")) {
  for (const control of comparison.querySelectorAll("[data-property]")) {
    control.addEventListener("input", () => {
      const { property, unit = "" } = control.dataset;
      if (property === "view") comparison.dataset.view = control.value;
      else comparison.style.setProperty(property, control.value + unit);
      if (property === "--zoom") comparison.classList.toggle("zoomed", control.value !== "0");
    });
  }
}
filter();
