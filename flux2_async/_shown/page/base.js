"use strict";

// What others wrote, prompts above all, reaches a page as text, through textContent and through addresses that are looked at.

const $ = (id) => document.getElementById(id);
const number = (value) => value.toLocaleString("en-GB", { maximumFractionDigits: 2 });

function make(tag, { text, ...properties } = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element && name !== "role") element[name] = value;
    else element.setAttribute(name, value);
  }
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
}

// Now and then is enough to be read aloud, and the last word comes always.
const SPOKEN = 10000;
let speaking = null, spoken = 0;

function speak(say) {
  speaking ??= setTimeout(() => {
    speaking = null;
    spoken = Date.now();
    say();
  }, Math.max(0, spoken + SPOKEN - Date.now()));
}

function showLink(state, text) {
  $("link").dataset.state = state;
  $("link-text").textContent = text;
}
