// The queue's page. Everything comes from this server's own API; what jobs say is only ever set as text.

const TOKEN = "comfywork-token";
const PRIORITIES = ["high", "normal", "low"];
const ENDED = ["completed", "failed", "cancelled"];
const LARGE = 40e6; // bytes of a picture that is not fetched by itself
const KEPT = 60; // results shown at first

const at = (id) => document.getElementById(id);
const state = { token: sessionStorage.getItem(TOKEN), me: null, jobs: new Map(), shown: KEPT, stream: null };
const cards = new Map(); // job id → its element, so that a picture is fetched once
const pictures = new Map(); // address → promise of a blob's address

class Refused extends Error {
  constructor(status, problem) {
    super(problem.hint ? `${problem.detail}\n${problem.hint}` : problem.detail);
    this.status = status;
  }
}

async function call(path, options = {}) {
  const answer = await fetch(path, {
    ...options,
    headers: { ...options.headers, Authorization: `Bearer ${state.token}` },
    cache: "no-store",
  });
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({ detail: `${answer.status} ${answer.statusText}` }));
    throw new Refused(answer.status, problem);
  }
  return answer;
}

const get = async (path, options) => (await call(path, options)).json();

const post = (path, body, method = "POST") =>
  get(path, {
    method,
    ...(body && { body: JSON.stringify(body), headers: { "Content-Type": "application/json" } }),
  });

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  Object.assign(element, properties);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function span(seconds) {
  const s = Math.max(0, seconds);
  if (s < 60) return `${s.toFixed(s < 10 ? 1 : 0)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min`;
  if (s < 86400) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86400)} d`;
}

const bytes = (n) => {
  const units = ["B", "kB", "MB", "GB"];
  let i = 0;
  while (n >= 1000 && i < units.length - 1) { n /= 1000; i += 1; }
  return `${i ? n.toPrecision(3) : n} ${units[i]}`;
};

const clock = (seconds) => new Date(seconds * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });

// --- logging in ---------------------------------------------------------------------------------

function show(inside) {
  at("door").hidden = inside;
  at("room").hidden = !inside;
  at("leave").hidden = !inside;
  at("who").textContent = inside ? state.me.tenant + (state.me.admin ? " (admin)" : "") : "";
}

async function enter() {
  try {
    state.me = await get("/v1/me");
  } catch (error) {
    if (error.status === 401) return leave("This token is nobody's.");
    leave("", true);
    at("refused").textContent = error.message;
    at("refused").hidden = false;
    return;
  }
  sessionStorage.setItem(TOKEN, state.token);
  at("refused").hidden = true;
  at("token").value = "";
  const allowed = PRIORITIES.slice(PRIORITIES.indexOf(state.me.priority));
  at("priority").replaceChildren(...allowed.map((name) => new Option(name, name, false, name === "normal")));
  show(true);
  listen();
  look();
}

function leave(why = "", keep = false) {
  state.stream?.abort();
  state.stream = null;
  if (!keep) {
    state.token = null;
    sessionStorage.removeItem(TOKEN);
  }
  state.jobs.clear();
  for (const address of pictures.values()) address.then((url) => URL.revokeObjectURL(url), () => {});
  pictures.clear();
  cards.clear();
  for (const id of ["queue", "results", "workers"]) at(id).replaceChildren();
  at("connection").textContent = "";
  at("refused").textContent = why;
  at("refused").hidden = !why;
  show(false);
  at("token").focus();
}

function trouble(error) {
  if (error.status === 401) return leave("This token is nobody's any more.");
  at("trouble").textContent = error.message;
  at("trouble").hidden = false;
  setTimeout(() => { at("trouble").hidden = true; }, 12000);
}

// --- what the server tells ----------------------------------------------------------------------

async function listen() {
  const mine = new AbortController();
  state.stream?.abort();
  state.stream = mine;
  let pause = 500;
  while (state.stream === mine) {
    try {
      const answer = await call("/v1/events", { signal: mine.signal });
      at("connection").textContent = "live";
      pause = 500;
      await read(answer.body, mine);
    } catch (error) {
      if (mine.signal.aborted) return;
      if (error.status === 401) return trouble(error);
    }
    at("connection").textContent = "connecting again…";
    await new Promise((done) => setTimeout(done, pause * (0.5 + Math.random())));
    pause = Math.min(15000, pause * 2);
  }
}

async function read(body, mine) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done || state.stream !== mine) return;
    text += value;
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      event(text.slice(0, end));
      text = text.slice(end + 2);
    }
  }
}

function event(block) {
  const name = /^event: (.*)$/m.exec(block)?.[1];
  const data = /^data: (.*)$/m.exec(block)?.[1];
  if (name === "job") {
    const job = JSON.parse(data);
    state.jobs.set(job.id, job);
    soon();
  } else if (name === "trouble") {
    at("connection").textContent = JSON.parse(data).detail;
  } else if (name === "hello") {
    at("connection").textContent = "live";
  }
}

async function look() {
  while (state.token && state.me && !at("room").hidden) {
    try {
      const [workers, queues] = await Promise.all([get("/v1/workers"), get("/v1/queues")]);
      drawWorkers(workers.workers);
      const own = queues.queues.filter((queue) => state.me.admin || queue.tenant === state.me.tenant);
      const mine = own.reduce((sum, queue) => sum + queue.waiting, 0);
      at("total").textContent = queues.waiting ? `${mine} of yours and ${queues.waiting - mine} of others wait` : "";
    } catch (error) {
      if (error.status === 401) return trouble(error);
    }
    draw();
    await new Promise((done) => setTimeout(done, 4000));
  }
}

// --- drawing ------------------------------------------------------------------------------------

let waiting = false;
function soon() {
  if (waiting) return;
  waiting = true;
  setTimeout(() => { waiting = false; draw(); }, 100);
}

function draw() {
  const jobs = [...state.jobs.values()];
  const open = jobs.filter((job) => !ENDED.includes(job.state));
  open.sort((a, b) => (a.state === b.state ? a.submitted - b.submitted : a.state === "processing" ? -1 : 1));
  place(at("queue"), open, row, "row");
  at("idle").hidden = open.length > 0;
  const ended = jobs.filter((job) => ENDED.includes(job.state)).sort((a, b) => b.ended - a.ended);
  place(at("results"), ended.slice(0, state.shown), card, "card");
  at("more").hidden = ended.length < state.shown;
}

// Elements in this order; one whose job has not changed stays as it is, with its pictures and its focus.
function place(list, jobs, draw_, kind) {
  const wanted = jobs.map((job) => {
    const key = `${kind}:${job.id}`;
    const words = JSON.stringify(job);
    let known = cards.get(key);
    if (!known || known.words !== words) {
      const fresh = draw_(job);
      if (known && known.element.contains(document.activeElement)) {
        const name = document.activeElement.dataset.name;
        queueMicrotask(() => fresh.querySelector(`[data-name="${name}"]`)?.focus());
      }
      known?.element.replaceWith(fresh);
      known = { words, element: fresh };
      cards.set(key, known);
    }
    return known.element;
  });
  const keep = new Set(wanted);
  for (const element of [...list.children]) if (!keep.has(element)) element.remove();
  wanted.forEach((element, i) => { if (list.children[i] !== element) list.insertBefore(element, list.children[i] ?? null); });
}

function row(job) {
  const running = job.state === "processing";
  const bar = make("progress", { max: 1, value: running ? job.progress.fraction : 0 });
  bar.setAttribute("aria-label", `Progress of ${job.id}`);
  const node = job.progress.node ? `, node ${job.progress.node}` : "";
  const words = running
    ? `${Math.round(job.progress.fraction * 100)} %${node} on ${job.worker}${job.cancelling ? ", being cancelled" : ""}`
    : `${job.position ? `${job.position} before it` : "next"} in its queue · since ${clock(job.submitted)}${job.note ? ` · ${job.note}` : ""}`;
  const actions = make("div", { className: "actions" });
  if (!running) actions.append(chooser(job));
  const cancel = button("Cancel", job.cancelling, () => act(`/v1/jobs/${job.id}/cancel`));
  cancel.dataset.name = "cancel";
  actions.append(cancel);
  const item = make(
    "li", {},
    make("span", { className: `state ${job.state}`, textContent: job.state }),
    make("span", { className: "id", textContent: label(job) }),
    make("div", {}, running ? bar : null, make("div", { className: "words", textContent: words })),
    actions,
  );
  item.dataset.job = job.id;
  return item;
}

const label = (job) => (state.me.admin ? `${job.tenant} ` : "") + job.id;

function button(text, disabled, action) {
  const element = make("button", { type: "button", textContent: text, disabled });
  element.addEventListener("click", async () => {
    element.disabled = true;
    try { await action(); } catch (error) { trouble(error); } finally { element.disabled = disabled; }
  });
  return element;
}

function chooser(job) {
  const allowed = PRIORITIES.slice(PRIORITIES.indexOf(state.me.priority));
  if (!allowed.includes(job.priority)) allowed.unshift(job.priority);
  const select = make("select", {}, ...allowed.map((name) => new Option(name, name, false, name === job.priority)));
  select.setAttribute("aria-label", `Priority of ${job.id}`);
  select.dataset.name = "priority";
  select.addEventListener("change", async () => {
    try {
      await act(`/v1/jobs/${job.id}/priority`, { priority: select.value }, "PUT");
    } catch (error) {
      select.value = job.priority;
      trouble(error);
    }
  });
  return select;
}

async function act(path, body, method) {
  const job = await post(path, body, method);
  state.jobs.set(job.id, job);
  draw();
}

function card(job) {
  const item = make("li");
  item.dataset.job = job.id;
  if (job.outputs.length) {
    item.append(make("div", { className: "pictures" }, ...job.outputs.map((output) => picture(job, output))));
  }
  if (job.failure) {
    item.append(make("p", { className: "failure", textContent: `${job.failure.kind}: ${job.failure.message}` }));
    if (job.failure.details) {
      item.append(
        make("details", {}, make("summary", { textContent: "Details" }), make("pre", { textContent: job.failure.details })),
      );
    }
  }
  const took = job.started === null ? "" : ` in ${span(job.ended - job.started)}`;
  const foot = make(
    "div", { className: "foot" },
    make("span", { className: `state ${job.state}`, textContent: job.state + (job.state === "completed" ? took : "") }),
  );
  if (job.state !== "completed") {
    foot.append(button("Run again", false, () => act(`/v1/jobs/${job.id}/retry`)));
  }
  item.append(foot, make("span", { className: "id", textContent: label(job) }));
  return item;
}

function picture(job, output) {
  const open = button("", false, () => view(output));
  open.setAttribute("aria-label", `Open ${output.file}`);
  open.title = `${output.name} · ${bytes(output.size)}`;
  if (output.media_type.startsWith("image/") && output.size < LARGE) {
    const image = make("img", { alt: `${output.file} of job ${job.id}` });
    open.append(image);
    whenSeen.observe(open);
    open.load = () => blob(output).then((url) => { image.src = url; }, () => { open.textContent = "gone"; });
  } else {
    open.textContent = `${output.file}\n${bytes(output.size)}`;
  }
  return open;
}

const whenSeen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    whenSeen.unobserve(entry.target);
    entry.target.load();
  }
}, { rootMargin: "300px" });

function blob(output) {
  if (!pictures.has(output.url)) {
    const found = call(output.url, { cache: "default" })
      .then((answer) => answer.blob())
      .then((data) => URL.createObjectURL(data));
    found.catch(() => pictures.delete(output.url));
    pictures.set(output.url, found);
  }
  return pictures.get(output.url);
}

async function view(output) {
  const url = await blob(output);
  const kind = output.media_type.split("/")[0];
  const shown =
    kind === "image" ? make("img", { src: url, alt: output.file })
    : kind === "video" ? make("video", { src: url, controls: true, loop: true })
    : kind === "audio" ? make("audio", { src: url, controls: true })
    : make("p", { className: "hint", textContent: "Save it to look at it." });
  at("view").replaceChildren(shown);
  at("caption").textContent = `${output.name} · ${output.media_type} · ${bytes(output.size)}`;
  at("save").href = url;
  at("save").download = output.file;
  at("viewer").showModal();
}

function drawWorkers(workers) {
  at("nobody").hidden = workers.length > 0;
  at("workers").replaceChildren(
    ...workers.map((worker) => {
      const lines = [
        worker.gpu,
        worker.memory_total ? `${bytes(worker.memory_used)} of ${bytes(worker.memory_total)} in use` : "",
        `${worker.models} model files · ${worker.done} done · ${worker.failed} failed`,
        worker.host,
      ];
      return make(
        "li", {},
        make(
          "div", { className: "head" },
          make("strong", { textContent: worker.id }),
          make("span", { className: `state ${worker.state === "busy" ? "processing" : "completed"}`, textContent: worker.state }),
        ),
        ...lines.filter(Boolean).map((text) => make("div", { className: "words", textContent: text })),
      );
    }),
  );
}

// --- what people do -----------------------------------------------------------------------------

at("login").addEventListener("submit", (happened) => {
  happened.preventDefault();
  const token = at("token").value.trim();
  if (!/^[\x21-\x7e]+$/.test(token)) {
    at("refused").textContent = "A token is one word of letters, digits, - and _.";
    at("refused").hidden = false;
    return;
  }
  state.token = token;
  enter();
});

at("leave").addEventListener("click", () => leave());
at("close").addEventListener("click", () => at("viewer").close());
at("viewer").addEventListener("close", () => at("view").replaceChildren());

at("more").addEventListener("click", async () => {
  state.shown += KEPT;
  const before = Math.min(...[...state.jobs.values()].map((job) => job.submitted));
  try {
    const page = await get(`/v1/jobs?limit=${KEPT}&before=${before}`);
    for (const job of page.jobs) state.jobs.set(job.id, job);
  } catch (error) {
    trouble(error);
  }
  draw();
});

at("workflow").addEventListener("change", async () => {
  const [file] = at("workflow").files;
  at("workflow").value = "";
  if (!file) return;
  try {
    let workflow;
    try {
      workflow = JSON.parse(await file.text());
    } catch (error) {
      throw new Error(`${file.name} is no JSON: ${error.message}`);
    }
    await act("/v1/jobs", { workflow, priority: at("priority").value, id: crypto.randomUUID?.() });
  } catch (error) {
    trouble(error);
  }
});

function theme(wanted) {
  if (wanted) document.documentElement.dataset.theme = wanted;
  const dark = wanted ? wanted === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  at("theme").textContent = dark ? "Light" : "Dark";
  at("theme").dataset.next = dark ? "light" : "dark";
}
at("theme").addEventListener("click", () => {
  localStorage.setItem("comfywork-theme", at("theme").dataset.next);
  theme(at("theme").dataset.next);
});
theme(localStorage.getItem("comfywork-theme"));

if (state.token) enter();
else leave();
