"use strict";
(() => {
  const root = document.documentElement;

  // Theme: as the system has it, light, or dark; remembered where the browser lets a local page remember.
  const button = document.getElementById("theme");
  const themes = ["system", "light", "dark"];
  const remember = {
    get: () => { try { return localStorage.getItem("tajax-theme"); } catch { return null; } },
    set: (theme) => { try { localStorage.setItem("tajax-theme", theme); } catch { /* not remembered */ } },
  };
  const use = (theme) => {
    if (theme === "system") delete root.dataset.theme;
    else root.dataset.theme = theme;
    button.querySelector("span").textContent = theme;
  };
  let theme = themes.includes(remember.get()) ? remember.get() : "system";
  use(theme);
  button.hidden = false;
  button.addEventListener("click", () => {
    theme = themes[(themes.indexOf(theme) + 1) % themes.length];
    use(theme);
    remember.set(theme);
  });

  // Tables: a click, or Enter or Space, on a title sorts; again turns it round. Rows of means stay below.
  const number = (text) => {
    const found = text.replace(/,/g, "").replace(/\u2212/g, "-").match(/^\s*[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?/i);
    return found ? Number.parseFloat(found[0]) : NaN;
  };
  const words = new Intl.Collator(undefined, { numeric: true });
  const sort = (table, column, ascending) => {
    const body = table.tBodies[0];
    const keyed = [...body.rows].map((row) => ({ row, text: row.cells[column].textContent }));
    const numeric = column > 0 && keyed.some(({ text }) => !Number.isNaN(number(text)));
    keyed.sort((a, b) => {
      if (!numeric) return (ascending ? 1 : -1) * words.compare(a.text, b.text);
      const [x, y] = [number(a.text), number(b.text)];
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y); // what is missing comes last
      return ascending ? x - y : y - x;
    });
    body.append(...keyed.map(({ row }) => row));
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const titles = [...table.tHead.rows[0].cells];
    titles.forEach((title, column) => {
      const press = document.createElement("button");
      press.type = "button";
      press.append(...title.childNodes);
      title.append(press);
      title.setAttribute("aria-sort", "none");
      press.addEventListener("click", () => {
        const now = title.getAttribute("aria-sort");
        const next = now === "none" ? (column ? "descending" : "ascending") : now === "ascending" ? "descending" : "ascending";
        titles.forEach((other) => other.setAttribute("aria-sort", "none"));
        title.setAttribute("aria-sort", next);
        sort(table, column, next === "ascending");
      });
    });
  }

  // What is wider than its place scrolls in it, and is reached by the keyboard then.
  const reach = () => {
    for (const place of document.querySelectorAll(".scroll")) {
      if (place.scrollWidth > place.clientWidth + 1) place.tabIndex = 0;
      else place.removeAttribute("tabindex");
    }
  };
  reach();
  addEventListener("resize", reach);
  document.addEventListener("toggle", reach, true);

  // On paper nothing opens: images of every task are printed.
  let opened = [];
  addEventListener("beforeprint", () => {
    opened = [...document.querySelectorAll("details.task:not([open])")];
    for (const one of opened) one.open = true;
  });
  addEventListener("afterprint", () => {
    for (const one of opened) one.open = false;
  });

  // Figures: drawn by Vega from the specifications in the page, its expressions interpreted, never evaluated as code.
  const draw = async () => {
    for (const place of document.querySelectorAll("[data-plot]")) {
      const spec = JSON.parse(document.getElementById(`spec-${place.dataset.plot}`).textContent);
      if (place.clientWidth < 480) spec.config.legend.columns = 2;
      try {
        await vegaEmbed(place, spec, {
          ast: true,
          renderer: "svg",
          actions: { export: true, source: false, compiled: false, editor: false },
          downloadFileName: place.dataset.name,
          tooltip: { theme: "custom" },
        });
        place.querySelector("summary")?.setAttribute("aria-label", "Save this figure");
        place.dataset.drawn = "yes";
      } catch (error) {
        place.textContent = "This figure could not be drawn; its numbers are in the tables.";
        console.error(error);
      }
    }
    reach();
    root.dataset.ready = "yes";
  };
  draw();
})();
