"use strict";
// The page's address says what is shown: ?view=… and what /api is asked for that view. Links and
// forms change the address; `show` then shows what it says.

const at = (id) => document.getElementById(id);
const VIEWS = ["describe", "search", "forest", "lineage"];
const ASKS = ["query", "like", "filter", "sort"]; // each of which makes a search
const form = at("asked");
const running = new Map(); // where an answer goes: its request
const answered = new Map(); // and what was asked there
let example = null; // the file to search by

function fail(place, text) {
  clear(place);
  place.innerHTML = error(text);
  at("said").textContent = text;
}

function error(text) {
  const box = document.createElement("p");
  box.className = "px-error";
  box.textContent = text;
  return box.outerHTML;
}

// Shows the answer to a question; of several for one place only the newest is shown.
function ask(place, address, body) {
  running.get(place)?.abort();
  const request = new XMLHttpRequest();
  running.set(place, request);
  request.open(body ? "POST" : "GET", address);
  request.setRequestHeader("Accept", "text/html");
  if (body) {
    place.innerHTML = "<label><span>Sending</span> <progress></progress></label>";
    const [label, bar] = place.firstChild.children;
    request.upload.onprogress = (sent) => (bar.value = sent.loaded / sent.total);
    request.upload.onload = () => {
      label.textContent = "Reading";
      bar.removeAttribute("value");
    };
  }
  const show = (html) => {
    place.innerHTML = html;
    place.removeAttribute("aria-busy");
    const heads = [...place.querySelectorAll("h2, .px-error, .px-note")];
    at("said").textContent = heads.map((one) => one.textContent).join(". ");
  };
  request.onload = () => {
    const is_html = request.getResponseHeader("content-type")?.startsWith("text/html");
    show(is_html ? request.responseText : error(request.responseText.trim()));
  };
  request.onerror = () => show(error("The server does not answer, or does not take so much."));
  place.setAttribute("aria-busy", "true");
  at("said").textContent = ""; // so that the same answer is announced again
  request.send(body);
}

function clear(place) {
  running.get(place)?.abort();
  answered.delete(place);
  place.removeAttribute("aria-busy");
  place.replaceChildren();
}

function too_large(files, most) {
  const large = files.find((file) => file.size > most);
  if (!large) return "";
  return `${large.name}: larger than the limit of ${Math.floor(most / 2 ** 20)} MiB`;
}

// What a form asks; what is empty is not asked.
function values(of) {
  return [...new FormData(of)].map(([name, value]) => [name, value.trim()]).filter((one) => one[1]);
}

function go(view, asked, again = false) {
  const address = `?${new URLSearchParams([["view", view], ...asked])}`;
  const state = {example: example?.name};
  if (address === location.search) history.replaceState(state, "");
  else history.pushState(state, "", address);
  show(again);
}

const opened = {
  describe(params, again) {
    const place = at("described");
    if (params.has("model") || params.has("id")) question(place, `api/describe?${params}`, again);
    else clear(place);
  },
  search(params, again) {
    for (const field of form.elements)
      if (field.name) field.value = params.get(field.name) ?? (field.name === "k" ? "12" : "");
    if (!params.has("k")) params.set("k", "12");
    const place = at("found");
    const is_example = !params.has("query") && !params.has("like");
    const name = is_example ? example?.name ?? history.state?.example : "";
    if (name && !example) return fail(place, `${name}: choose the file again`);
    if (name) params.set("name", name);
    if (name || ASKS.some((asked) => params.has(asked)))
      question(place, `api/search?${params}`, again, name ? example : undefined);
    else clear(place);
  },
  forest(params) {
    const {index} = at("mapped").elements;
    if (params.has("index")) index.value = params.get("index");
    if (index.options.length) framed(at("map"), index.value);
  },
  lineage() {
    const frame = document.querySelector("#lineage iframe");
    frame.src ||= frame.dataset.src;
  },
};

// Asks unless the answer is there, or is wanted again.
function question(place, address, again, body) {
  const asked = [address, body];
  if (!again && answered.get(place)?.every((part, number) => part === asked[number])) return;
  answered.set(place, asked);
  ask(place, address, body);
}

// A new frame: another address of an old one would be another step back.
function framed(place, index) {
  const src = `map?${new URLSearchParams({index})}`;
  if (place.firstChild?.getAttribute("src") === src) return;
  const frame = document.createElement("iframe");
  place.replaceChildren(Object.assign(frame, {className: "px-map", title: `Map of ${index}`, src}));
}

function show(again = false) {
  const params = new URLSearchParams(location.search);
  const asks = ASKS.some((asked) => params.has(asked)) ? "search" : "describe";
  const view = VIEWS.includes(params.get("view")) ? params.get("view") : asks;
  params.delete("view");
  for (const one of VIEWS) at(one).hidden = one !== view;
  for (const link of document.querySelectorAll("nav a")) {
    const is_shown = new URLSearchParams(link.search).get("view") === view;
    link.removeAttribute("aria-current");
    if (is_shown) {
      link.setAttribute("aria-current", "page");
      document.title = `${link.textContent} – What is this model?`;
      // Who comes back to a view finds it as it was.
      link.href = `?${new URLSearchParams([["view", view], ...params])}`;
    }
  }
  opened[view](params, again);
}

// Several events of one change, such as that of a field and of its form, are one question.
let waiting = 0;
let again = false;
function searched(is_again) {
  again ||= is_again;
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    go("search", values(form).filter(([name, value]) => name !== "k" || value !== "12"), again);
    again = false;
  });
}

form.addEventListener("change", (event) => event.target.id !== "example" && searched(false));
form.addEventListener("submit", (event) => {
  event.preventDefault();
  searched(true);
});
form.addEventListener("reset", () => {
  form.elements.like.value = "";
  example = null;
  searched(false);
});
form.elements.query.addEventListener("input", () => {
  form.elements.like.value = "";
  example = null;
});

at("example").addEventListener("change", () => {
  const [file] = at("example").files;
  at("example").value = "";
  const fault = too_large([file], at("example").dataset.most);
  if (fault) return fail(at("found"), fault);
  example = file;
  form.elements.query.value = form.elements.like.value = "";
  searched(true);
});

at("files").addEventListener("change", () => {
  const files = [...at("files").files];
  at("files").value = "";
  go("describe", []); // no model of an address stands above those of files
  const place = document.createElement("div");
  at("dropped").prepend(place);
  const fault = too_large(files, at("files").dataset.most);
  if (fault) return fail(place, fault);
  const body = new FormData();
  for (const file of files) body.append("file", file);
  ask(place, "api/describe", body);
});

at("hub").addEventListener("submit", (event) => {
  event.preventDefault();
  go("describe", values(at("hub")), true);
});
at("mapped").addEventListener("change", () => go("forest", values(at("mapped"))));

document.addEventListener("click", (event) => {
  const link = event.target.closest('a[href^="?"]');
  if (!link || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  if (link.search !== location.search) history.pushState(null, "", link.search);
  show();
  scrollTo(0, 0);
});
addEventListener("popstate", () => show());
show();
