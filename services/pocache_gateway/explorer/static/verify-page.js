/**
 * "Verify in this browser": runs the second verifier over a receipt, step by step, where the reader can see it.
 *
 * Nothing leaves the browser: the receipt and the trust file are read here. Web Crypto exists only in a secure context,
 * which is HTTPS or this machine; elsewhere the button says so and stays off.
 */

import { verifyReceipt } from "./verify.js";

const STATUS = {
  ok: ["holds", "good"],
  failed: ["does not hold", "bad"],
  "not-applicable": ["not needed", ""],
  "not-checked": ["not checked here", "warn"],
};
const DETAIL_CHARS_MAX = 2_000;
const prefix = document.body.dataset.prefix;
const canVerify = window.isSecureContext && Boolean(globalThis.crypto?.subtle);

function makeElement(name, className, text) {
  const element = document.createElement(name);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function showStep(list, step) {
  const [word, tone] = STATUS[step.status] ?? [step.status, ""];
  const item = makeElement("li", step.status === "failed" ? "failed" : "");
  item.dataset.step = step.id;
  item.dataset.status = step.status;
  item.append(makeElement("code", "", step.id), makeElement("span", `badge ${tone}`, word));
  const title = makeElement("div", "step-title");
  const cut = step.detail.length > DETAIL_CHARS_MAX ? `${step.detail.slice(0, DETAIL_CHARS_MAX)}…` : step.detail;
  if (!cut) {
    title.textContent = step.title;
  } else if (step.status === "ok") {
    const details = makeElement("details");
    details.append(makeElement("summary", "", step.title), makeElement("span", "detail", cut));
    title.append(details);
  } else {
    title.append(step.title, makeElement("span", "detail", cut));
  }
  item.append(title);
  list.append(item);
}

function conclude(report) {
  if (!report.valid) {
    const failed = report.steps.find((step) => step.id === report.failed);
    return ["bad", `This receipt does not hold. Step ${failed.id}, ${failed.title}: ${failed.detail}`];
  }
  const open = report.steps.filter((step) => step.status === "not-checked").map((step) => step.id);
  const rest = open.length ? ` Not checked here: ${open.join(", ")}.` : "";
  return ["good", `This receipt holds: every step that could be checked in this browser does.${rest}`];
}

async function verify(place, data, trust) {
  const verdict = makeElement("p", "notice verdict", "Verifying …");
  verdict.setAttribute("role", "status");
  const list = makeElement("ol", "report");
  place.replaceChildren(verdict, list);
  try {
    const report = await verifyReceipt(data, trust, { bls12_381: null, onStep: (step) => showStep(list, step) });
    const [tone, text] = conclude(report);
    verdict.className = `notice verdict ${tone}`;
    verdict.textContent = text;
    place.dataset.valid = String(report.valid);
    place.dataset.failed = report.failed ?? "";
  } catch (error) {
    verdict.className = "notice verdict bad";
    verdict.textContent = `It could not be judged: ${error.message}`;
    place.dataset.valid = "error";
  }
}

async function fetchBytes(path) {
  const answer = await fetch(path);
  if (!answer.ok) {
    const reason = await answer.json().then((body) => body.error.message, () => answer.statusText);
    throw new Error(reason);
  }
  return new Uint8Array(await answer.arrayBuffer());
}

const readFile = async (file) => new Uint8Array(await file.arrayBuffer());
const getTrust = async (file) => new TextDecoder().decode(file ? await readFile(file) : await fetchBytes(`${prefix}/trust.json`));

async function run(button, place, getData, getTrustText) {
  button.disabled = true;
  delete place.dataset.valid;
  try {
    const [data, trust] = await Promise.all([getData(), getTrustText()]);
    await verify(place, data, trust);
  } catch (error) {
    place.replaceChildren(makeElement("p", "notice bad", `It could not be read: ${error.message}`));
    place.dataset.valid = "error";
  } finally {
    button.disabled = false;
  }
}

function explainNoCrypto(button) {
  button.disabled = true;
  button.textContent = "Verifying needs HTTPS or this machine’s own address";
  button.title = "Browsers give web pages cryptography only over HTTPS or from a loopback address";
}

function enhance() {
  for (const button of document.querySelectorAll("button[data-verify]:not([data-ready])")) {
    button.dataset.ready = "yes";
    if (!canVerify) {
      explainNoCrypto(button);
      continue;
    }
    const place = button.closest("section").querySelector("[data-verify-report]");
    button.addEventListener("click", () => run(button, place, () => fetchBytes(button.dataset.verify), () => getTrust()));
  }
  for (const form of document.querySelectorAll("form[data-verify-form]:not([data-ready])")) {
    form.dataset.ready = "yes";
    const button = form.querySelector("button");
    if (!canVerify) {
      explainNoCrypto(button);
      continue;
    }
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const { receipt, trust } = form.elements;
      const place = document.querySelector("[data-verify-report]");
      run(button, place, () => readFile(receipt.files[0]), () => getTrust(trust.files[0]));
    });
  }
}

document.addEventListener("pocache:enhanced", enhance);
enhance();
