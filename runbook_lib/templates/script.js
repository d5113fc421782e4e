"use strict";
// Everything on these pages works without this script; it adds a theme switch, a filter and three keys.
(() => {
  const page = document.documentElement;
  const kept = () => { try { return localStorage.getItem("theme"); } catch { return null; /* file:// may refuse */ } };
  const keep = (value) => { try { localStorage.setItem("theme", value); } catch { /* as above */ } };
  if (kept() === "dark" || kept() === "light") page.dataset.theme = kept();

  const themeSwitch = () => {
    const button = document.getElementById("theme");
    if (!button) return;
    button.hidden = false;
    button.addEventListener("click", () => {
      const dark = page.dataset.theme ? page.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
      page.dataset.theme = dark ? "light" : "dark";
      keep(page.dataset.theme);
    });
  };

  const filter = () => {
    const form = document.querySelector("form.filters");
    const rows = [...document.querySelectorAll("table.findings tbody tr, section.check")];
    if (!form || !rows.length) return;
    form.hidden = false;
    const text = form.querySelector("#filter");
    const boxes = [...form.querySelectorAll("input[type=checkbox]")];
    const shown = form.querySelector("#shown");
    const contents = rows.map((row) => row.textContent.toLowerCase());
    const apply = () => {
      const unwanted = new Set(boxes.filter((box) => !box.checked).map((box) => box.value));
      const words = text.value.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      rows.forEach((row, index) => {
        row.hidden = unwanted.has(row.dataset.status) || !words.every((word) => contents[index].includes(word));
        count += row.hidden ? 0 : 1;
      });
      for (const area of document.querySelectorAll("section.area")) area.hidden = !area.querySelector("section.check:not([hidden])");
      shown.textContent = `${count} / ${rows.length}`;
    };
    form.addEventListener("input", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
    apply();
  };

  document.addEventListener("DOMContentLoaded", () => { themeSwitch(); filter(); });
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(event.target.tagName)) return;
    const field = document.getElementById("filter");
    if (event.key === "/" && field) { event.preventDefault(); field.focus(); }
    if (event.target.closest(".scroll, pre")) return; // the arrows move what does not fit
    const turn = { ArrowLeft: "prev", ArrowRight: "next" }[event.key];
    const link = turn && document.querySelector(`.pager a[rel=${turn}]`);
    if (link) link.click();
  });
})();
