// Fetches the page again while somebody types, and takes its results over. The page works without.
"use strict";
const form = document.querySelector("form[role=search]");
const status = document.getElementById("status");
const DEBOUNCE_MS = 150, PASSAGES_MS = 500;
let timer, running;

document.documentElement.classList.add("scripted");

function address(fast) {
  const values = new URLSearchParams(new FormData(form));
  if (fast) values.set("fast", "1");
  return "/?" + values;
}

async function show(url, kept, quiet) {
  running?.abort();
  running = new AbortController();
  const results = document.getElementById("results");
  results.setAttribute("aria-busy", "true");
  try {
    const answer = await fetch(url, {signal: running.signal});
    if (!answer.ok) throw new Error((await answer.json()).error.message);
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    const focused = results.contains(document.activeElement) && document.activeElement.id;
    results.replaceWith(page.getElementById("results"));
    document.title = page.title;
    if (focused) document.getElementById(focused)?.focus({preventScroll: true});
    if (!quiet) status.textContent = document.getElementById("results").dataset.status;
    history.replaceState(null, "", kept);
    return true;
  } catch (error) {
    if (error.name === "AbortError") return false;
    results.removeAttribute("aria-busy");
    status.textContent = error.message;
    status.className = "problem";
    return false;
  }
}

async function search() {
  status.className = "hidden";
  if (await show(address(true), address()))
    timer = setTimeout(() => show(address(), address(), true), PASSAGES_MS);
}

function later() {
  clearTimeout(timer);
  timer = setTimeout(search, DEBOUNCE_MS);
}

async function turn(link) {
  clearTimeout(timer);
  if (await show(link.href, link.href)) document.querySelector(".hit")?.focus();
}

function move(step) {
  const hits = [...document.querySelectorAll(".hit")];
  const place = hits.indexOf(document.activeElement.closest(".hit"));
  if (place + step < 0) form.q.focus();
  else hits[Math.min(place + step, hits.length - 1)]?.focus();
}

form?.addEventListener("input", later);
form?.addEventListener("submit", event => {
  event.preventDefault();
  clearTimeout(timer);
  search();
});
document.addEventListener("click", event => {
  const link = event.target.closest(".pages a");
  if (!form || !link || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  turn(link);
});
document.addEventListener("keydown", event => {
  if (!form || event.ctrlKey || event.metaKey || event.altKey || event.target.matches("select")) return;
  const typing = event.target.matches("input");
  const link = {n: "a[rel=next]", p: "a[rel=prev]"}[event.key];
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    if (typing && event.key === "ArrowUp") return;
    move(event.key === "ArrowDown" ? 1 : -1);
  } else if (typing) return;
  else if (event.key === "/") form.q.select();
  else if (link && document.querySelector(link)) turn(document.querySelector(link));
  else return;
  event.preventDefault();
});
for (const kind of ["pointerover", "focusin"]) {
  document.addEventListener(kind, event => {
    const point = event.target.closest("[data-text]");
    if (point) point.closest("figure").querySelector("[data-caption]").textContent = point.dataset.text;
  });
}
