"use strict";
// Everything on these pages works without this script; it adds a theme switch, a filter and two keys.
(() => {
  const page = document.documentElement;
  const remember = (value) => { try { localStorage.setItem("theme", value); } catch { /* file:// may refuse */ } };
  try { const kept = localStorage.getItem("theme"); if (kept === "dark" || kept === "light") page.dataset.theme = kept; } catch { /* as above */ }

  const theme = document.getElementById("theme");
  if (theme) {
    theme.hidden = false;
    theme.addEventListener("click", () => {
      const dark = page.dataset.theme ? page.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      page.dataset.theme = dark ? "light" : "dark";
      remember(page.dataset.theme);
    });
  }

  const form = document.querySelector("form.filters");
  const rows = [...document.querySelectorAll("table.findings tbody tr")];
  if (form && rows.length) {
    form.hidden = false;
    const text = form.querySelector("#filter");
    const boxes = [...form.querySelectorAll("input[type=checkbox]")];
    const shown = form.querySelector("#shown");
    const apply = () => {
      const wanted = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
      const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const row of rows) {
        const content = row.textContent.toLowerCase();
        row.hidden = !(wanted.has(row.dataset.status) && words.every((word) => content.includes(word)));
        if (!row.hidden) count += 1;
      }
      shown.textContent = `${count} / ${rows.length}`;
    };
    form.addEventListener("input", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
    apply();
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
    if (event.key === "/" && form) { event.preventDefault(); form.querySelector("#filter").focus(); }
    const turn = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
    const link = turn && document.querySelector(`.pager a[rel=${turn}]`);
    if (link) link.click();
  });
})();
