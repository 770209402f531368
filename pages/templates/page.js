// Theme, definitions, tables and charts. What needs a canvas is in canvas.js, which follows in the same script.
"use strict";
const root = document.documentElement;
const views = JSON.parse(document.getElementById("views").textContent);
const listeners = []; // functions that draw anew when colours change
root.classList.add("script");

function make(tag, attributes = {}, ...content) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...content);
  return element;
}

// Light and dark: the system's choice until the button is pressed.
{
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = localStorage.getItem("spikebrain-theme"); } catch { /* no storage for files here */ }
  const show = () => {
    const dark = chosen ? chosen === "dark" : system.matches;
    root.style.colorScheme = chosen ?? "";
    root.dataset.theme = dark ? "dark" : "light";
    button.textContent = dark ? "Light" : "Dark";
    for (const draw of listeners) draw();
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    chosen = root.dataset.theme === "dark" ? "light" : "dark";
    try { localStorage.setItem("spikebrain-theme", chosen); } catch { /* it lasts until the page is left */ }
    show();
  });
  system.addEventListener("change", show);
  show();
}

// A definition stands once, at the end; its links show it where they are.
{
  const box = document.getElementById("definition");
  document.addEventListener("click", (event) => {
    const link = event.target.closest("a.term");
    if (!link || !box.showPopover) return;
    event.preventDefault();
    box.replaceChildren(...document.querySelector(link.hash).cloneNode(true).childNodes);
    box.showPopover();
    const place = link.getBoundingClientRect(), size = box.getBoundingClientRect();
    const below = place.bottom + 8 + size.height < innerHeight;
    box.style.left = `${Math.max(16, Math.min(place.left - 16, innerWidth - size.width - 16))}px`;
    box.style.top = `${below ? place.bottom + 8 : Math.max(16, place.top - 8 - size.height)}px`;
  });
  addEventListener("scroll", () => box.matches(":popover-open") && box.hidePopover(), { passive: true });
}

// Tables sort by a click on a heading, and have a filter if they are long.
for (const sheet of document.querySelectorAll(".sheet")) {
  const body = sheet.querySelector("tbody"), rows = [...body.rows];
  const compare = new Intl.Collator("en", { numeric: true }).compare;
  const heads = [...sheet.querySelectorAll("th")];
  heads.forEach((head, i) => {
    const name = head.querySelector(".name");
    if (!name.textContent || rows.length < 2) return;
    const button = make("button", { type: "button", title: "Sort" }, name.textContent);
    name.replaceChildren(button);
    const numeric = head.classList.contains("number");
    const value = (row) => (numeric ? row.cells[i].dataset.value : row.cells[i].textContent);
    button.addEventListener("click", () => {
      const down = head.ariaSort ? head.ariaSort === "ascending" : numeric;
      for (const other of heads) other.ariaSort = null;
      head.ariaSort = down ? "descending" : "ascending";
      const order = (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === "" || y === "") return (x === "") - (y === ""); // what is missing comes last
        const both = numeric && !isNaN(x) && !isNaN(y);
        return (down ? -1 : 1) * (both ? x - y : compare(x, y));
      };
      body.append(...[...rows].sort(order));
    });
  });
  if (rows.length <= 12) continue;
  const filter = make("input", { type: "search", placeholder: "Filter rows", "aria-label": "Filter rows" });
  const count = make("output", {}, `${rows.length} rows`);
  filter.addEventListener("input", () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !words.every((word) => text.includes(word));
      shown += !row.hidden;
    }
    count.textContent = shown === rows.length ? `${shown} rows` : `${shown} of ${rows.length} rows`;
  });
  sheet.querySelector(".controls").append(filter, count);
}

// Printed pages show what is folded.
{
  const folded = new Set();
  addEventListener("beforeprint", () => {
    for (const one of document.querySelectorAll("details:not([open])")) {
      one.open = true;
      folded.add(one);
    }
  });
  addEventListener("afterprint", () => {
    for (const one of folded) one.open = false;
    folded.clear();
  });
}

const painters = {};
painters.chart = (figure, spec) =>
  vegaEmbed(figure.querySelector(".drawing"), spec, {
    actions: false,
    renderer: "svg",
    ast: true, // nothing is evaluated, so the page forbids it
    defaultStyle: false,
    bind: figure.querySelector(".controls"),
    formatLocale: { decimal: ".", thousands: ",", grouping: [3], currency: ["", ""], percent: "\u00a0%", minus: "−" },
    tooltip: { disableDefaultStyle: true, theme: "custom" },
  });

// After the first paint, one after the other.
addEventListener("load", async () => {
  for (const figure of document.querySelectorAll("figure.view")) {
    const view = views[figure.dataset.view];
    await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve)));
    await painters[view.what](figure, view.data);
    figure.dataset.state = "drawn";
  }
  root.dataset.state = "drawn";
});
