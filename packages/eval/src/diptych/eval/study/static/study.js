// One question: keys, waiting for the pictures, and sending until the server has the answer.
"use strict";

const form = document.getElementById("question");
const notice = document.getElementById("notice");
const word = document.getElementById("word");
const pictures = [...form.querySelectorAll("img")];
const PAUSE = 300; // ms after the pictures are there, so that a second tap does not answer the next question
const RETRY = 1500;
let ready = false;
let sent = false;
let shown = 0;

function say(text) {
  notice.textContent = text;
  notice.hidden = !text;
}

form.classList.add("waiting");
Promise.all(pictures.map((picture) => picture.decode()))
  .then(() => {
    // frames are as wide as the pictures: wide for wide ones, tall for tall ones, square for a mixture
    const ratios = pictures.map((picture) => picture.naturalWidth / picture.naturalHeight);
    const widest = Math.max(...ratios);
    const ratio = Math.min(...ratios) > 1 ? Math.min(...ratios) : widest < 1 ? widest : 1;
    form.style.setProperty("--ratio", Math.min(1.8, Math.max(0.6, ratio)));
    form.classList.remove("waiting");
    shown = performance.now();
    setTimeout(() => {
      ready = true;
      form.classList.add("ready");
    }, PAUSE);
    // the next question's pictures come while these are looked at
    for (const token of form.dataset.coming.split(" ").filter(Boolean)) new Image().src = form.dataset.pictures + token;
  })
  .catch(() => {
    say("The pictures did not load. Trying again…");
    setTimeout(() => location.reload(), RETRY);
  });

if (word && matchMedia("(pointer: fine)").matches) word.focus();

async function send(body) {
  for (;;) {
    let response;
    try {
      response = await fetch(form.action, { method: "POST", body, redirect: "manual" });
    } catch {
      response = null;
    }
    if (response && response.type === "opaqueredirect") {
      location.replace(form.dataset.next);
      return;
    }
    if (response && response.status >= 400 && response.status < 500) {
      const page = new DOMParser().parseFromString(await response.text(), "text/html");
      const detail = page.getElementById("detail");
      say(detail ? detail.textContent : "This did not work. Please open your link again.");
      sent = false;
      form.classList.remove("sent");
      return;
    }
    say("No connection. Your answer is kept here and sent again…");
    await new Promise((resolve) => setTimeout(resolve, RETRY));
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (!ready || sent) return;
  sent = true;
  say("");
  form.elements.seconds.value = ((performance.now() - shown) / 1000).toFixed(2);
  const body = new URLSearchParams(new FormData(form));
  if (event.submitter && event.submitter.name) {
    body.set("answer", event.submitter.value);
    form.querySelectorAll(".chosen").forEach((button) => button.classList.remove("chosen"));
    event.submitter.classList.add("chosen");
  }
  form.classList.add("sent");
  send(body);
});

const KEYS = { 1: "first", ArrowLeft: "first", 2: "second", ArrowRight: "second", 0: "tie", ArrowDown: "tie" };
document.addEventListener("keydown", (event) => {
  if (word || event.repeat || event.ctrlKey || event.metaKey || event.altKey) return;
  const value = KEYS[event.key];
  if (!value) return;
  event.preventDefault();
  form.requestSubmit(form.querySelector(`button[value="${value}"]`));
});

// A page that the browser kept from before an answer shows that question again: ask for the current one.
addEventListener("pageshow", (event) => {
  if (event.persisted) location.reload();
});
