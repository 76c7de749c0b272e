/** The console: signs in, holds one session, and hands its events to the threads on the page. */

import { connect, uniqueId } from "/netra-ws.js";
import { Conversation } from "/console/conversation.js";
import { element, icon, shortened } from "/console/dom.js";
import { ThreadList } from "/console/threads.js";

const TOKEN_KEY = "netra-ws.token";
const THREAD_KEY = "netra-ws.thread";
const PAGE_SIZE = 50;
const MAX_CONVERSATIONS = 12; // kept with their elements; the least recently shown goes first, never a busy one
const NOTICE_MS = 7_000;
const EXPIRY_NOTICE_MS = 30_000; // behind the token's end: longer than the server's grace
const MESSAGE_ROOM_BYTES = 8_192; // for the words beside an attached log
const REFUSALS = new Set(["AUTH_FAILED", "FORBIDDEN", "POLICY", "SIGNED_OUT", "TOKEN_EXPIRED"]);

const $ = (id) => document.getElementById(id);
const threads = new ThreadList($("threads"), (threadId) => show(threadId));

let session = null;
let conversation = null; // the one that is shown
let conversations = new Map();
let activeRuns = new Map(); // run_id → {run_id, thread_id, agent_name, state, started_seq}
let replayed = new Set(); // runs that are told again from their start
let replaying = false; // until the last of that has come
let rewoundFor = null; // the welcome after which that was asked for: once each, or a trimmed stream would ask for ever
let loadedFor = null;
let olderThreads = null;
let clockSkewS = 0; // the server's clock minus ours
let attachment = null;
let countdown = null;

// Signing in and out

function takeTokenFromAddress() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!token) return false;
  sessionStorage.setItem(TOKEN_KEY, token);
  history.replaceState(null, "", location.pathname + location.search);
  return true;
}

function begin() {
  const token = sessionStorage.getItem(TOKEN_KEY);
  if (token) signIn(token);
  else showSignIn();
}

function showSignIn(problem = "") {
  $("app").hidden = true;
  $("sign-in-panel").hidden = false;
  $("sign-in-error").hidden = problem === "";
  $("sign-in-error").textContent = problem;
  $("sign-in-token").value = "";
  $("sign-in-token").focus();
}

function signIn(token) {
  sessionStorage.setItem(TOKEN_KEY, token);
  forgetEverything();
  $("sign-in-panel").hidden = true;
  $("app").hidden = false;
  $("user").textContent = "…";
  const mine = connect(new URL("/ws", location.href), {
    token,
    onState: (change) => mine === session && stateChanged(change),
    onNotice: (frame) => mine === session && noticed(frame),
  });
  session = mine;
  follow(mine);
  const lastShown = sessionStorage.getItem(THREAD_KEY);
  newConversation();
  if (lastShown) sessionStorage.setItem(THREAD_KEY, lastShown); // opened with the connection
}

async function signOut(problem = "") {
  const leaving = session;
  session = null;
  sessionStorage.removeItem(TOKEN_KEY);
  sessionStorage.removeItem(THREAD_KEY);
  forgetEverything();
  showSignIn(problem);
  await leaving?.close();
}

function forgetEverything() {
  for (const each of conversations.values()) each.dispose();
  conversations = new Map();
  activeRuns = new Map();
  replayed = new Set();
  conversation = null;
  threads.add([], { replace: true });
  $("conversation").replaceChildren();
  $("notices").replaceChildren();
  setAttachment(null);
}

/** A token's own end, so that a refusal can be explained; the server alone decides. */
function hasExpired(token) {
  try {
    const claims = JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/")));
    return claims.exp * 1_000 < Date.now();
  } catch {
    return false;
  }
}

function refusalWords(error) {
  if (error.code === "SIGNED_OUT") {
    const reason = error.message === "signed out by an operator" ? "" : ` (“${error.message}”)`;
    return `You were signed out by an operator${reason}. Sign in with a new token.`;
  }
  if (error.code === "TOKEN_EXPIRED" || hasExpired(sessionStorage.getItem(TOKEN_KEY) ?? "")) {
    return "This token has expired. Sign in with a new one.";
  }
  return `The server does not accept this token: ${error.message.replace(/\.$/, "")}.`;
}

// The connection

function stateChanged(change) {
  const { state, reason, error } = change;
  clearInterval(countdown);
  $("dot").dataset.state = state;
  $("state").dataset.state = state;
  $("reconnect").hidden = state !== "waiting" && state !== "closed";
  $("reconnect").textContent = state === "closed" ? "Connect again" : "Connect now";
  if (state === "open") opened(change.welcome);
  else if (state === "connecting") $("state").textContent = "Connecting…";
  else if (state === "waiting") waiting(change);
  else if (error && (REFUSALS.has(error.code) || error.details.http_status === 401)) signOut(refusalWords(error));
  else $("state").textContent = `Closed: ${reason}`;
  allowSending();
}

function waiting({ delayMs, failures, doubtful, reason }) {
  const until = Date.now() + delayMs;
  const tell = () => {
    const seconds = Math.max(0, Math.ceil((until - Date.now()) / 1_000));
    $("state").textContent = `${doubtful ? "Still no connection" : "Reconnecting"} in ${seconds} s`;
  };
  $("state").title = reason;
  tell();
  countdown = setInterval(tell, 250);
  if (failures === 3) explainRefusals(session);
}

/** Opening fails again and again, not for the token: netra-ws.js has asked about that. A browser tells no more. */
async function explainRefusals(mine) {
  const answer = await fetch("/health").catch(() => null);
  if (!answer?.ok || mine !== session || mine.state === "open") return;
  const why = `too many connections of yours may be open, or ${location.origin} is missing in the setting origins.allowed`;
  notice(`The server is there but refuses this connection: ${why}.`, "warning", 30_000);
}

function opened(welcome) {
  $("state").textContent = "Connected";
  $("state").removeAttribute("title");
  $("user").textContent = welcome.user_id;
  $("user").title = welcome.user_id;
  if (Number.isFinite(welcome.server_time)) clockSkewS = welcome.server_time - Date.now() / 1_000;
  showPosition();
  offerAgents(welcome.agents ?? []);
  activeRuns = new Map((welcome.active_runs ?? []).map((run) => [run.run_id, run]));
  markThreads();
  // A resumed connection goes on; after anything else a stream_reset follows or nothing was shown before.
  if (loadedFor !== session) {
    loadedFor = session;
    reloadAll();
  }
}

/** Load the list, the shown thread and those with active runs, and have these runs told again from their start. */
async function reloadAll() {
  const shown = sessionStorage.getItem(THREAD_KEY);
  const kept = conversation?.local ? conversation : null;
  for (const each of conversations.values()) if (each !== kept) each.dispose();
  conversations = new Map(kept ? [[kept.threadId, kept]] : []);
  rewind();
  for (const run of activeRuns.values()) ensure(run.thread_id);
  const listed = loadThreads();
  if (shown && shown !== kept?.threadId) show(shown, { focus: false });
  await listed;
}

/** Have the active runs told again from their start: history has their texts, but not their steps. */
function rewind() {
  const mine = session;
  const starts = [...activeRuns.values()].filter((run) => Number.isSafeInteger(run.started_seq));
  replayed = new Set();
  replaying = false;
  if (rewoundFor === mine.welcome || starts.length === 0) return;
  rewoundFor = mine.welcome;
  replayed = new Set(starts.map((run) => run.run_id));
  replaying = true;
  const seq = Math.max(0, Math.min(...starts.map((run) => run.started_seq)) - 1);
  mine.rewind({ epoch: mine.position.epoch, seq }).catch(() => mine === session && reloadAll());
}

function noticed(frame) {
  if (frame.type === "replay_completed" && frame.job_id == null) askWhatWaits();
  else if (frame.type === "lagging") notice("This connection is behind; some steps of the text were skipped.", "quiet");
  else if (frame.type === "draining") notice("The server restarts soon. The page reconnects by itself.", "quiet");
  else if (frame.type === "auth_expiring") tellExpiry(Math.max(0, Number(frame.expires_in_s) || 0));
  else if (frame.type === "connection_warning" || frame.type === "error") notice(frame.error ?? frame.code, "error");
}

/** Say when the token ends, until the server has closed: it does so a grace after that end. */
function tellExpiry(leftSeconds) {
  const when = leftSeconds >= 1 ? `in ${Math.round(leftSeconds)} seconds` : "now";
  const lastsMs = leftSeconds * 1_000 + EXPIRY_NOTICE_MS;
  notice(`Your token expires ${when}. Sign out and in again with a new one to go on.`, "warning", lastsMs);
}

function notice(text, kind = "quiet", lastsMs = NOTICE_MS) {
  for (const old of $("notices").children) if (old.firstChild.textContent === text) old.remove();
  const close = element("button.icon-button.small", { type: "button", "aria-label": "Dismiss" }, icon("close"));
  const box = element("div.notice", { "data-kind": kind, testid: kind === "error" ? "error" : "notice" }, element("span", {}, text), close);
  close.addEventListener("click", () => box.remove());
  $("notices").append(box);
  while ($("notices").children.length > 3) $("notices").firstChild.remove();
  if (kind !== "error") setTimeout(() => box.remove(), lastsMs);
}

/** Return whether `promise` was kept; say so where it was not. */
async function told(promise) {
  try {
    await promise;
    return true;
  } catch (error) {
    if (session) notice(error.message, "error");
    return false;
  }
}

function announce(text) {
  $("announcer").textContent = text;
}

function showPosition() {
  const { epoch, seq } = session.position ?? {};
  $("position").textContent = epoch === undefined ? "–" : `${epoch.slice(0, 8)}:${seq}`;
  $("position").title = epoch === undefined ? "" : `${epoch}:${seq}`;
}

// Events

async function follow(mine) {
  try {
    for await (const event of mine.events({ limit: 20_000 })) {
      if (mine !== session) return;
      if (event.type === "stream_reset") {
        if (event.job_id == null) reloadAll();
      } else if (event.job_id == null) take(event);
      requestPosition();
    }
  } catch {
    // The session ended for good; its state has told why.
  }
}

let positionAsked = false;
function requestPosition() {
  if (positionAsked) return;
  positionAsked = true;
  requestAnimationFrame(() => {
    positionAsked = false;
    if (session) showPosition();
  });
}

function take(event) {
  const { type, thread_id: threadId } = event;
  if (type === "thread_created") threads.touch(threadId, { title: event.title });
  else if (type === "thread_renamed") renamed(threadId, event.title);
  else if (type === "thread_deleted") deleted(threadId);
  else if (threadId) inThread(event);
}

function inThread(event) {
  const { type, thread_id: threadId, run_id: runId } = event;
  if (type === "input_required") asked(event);
  if (type === "input_received") markThreads();
  if (type === "user_message") threads.touch(threadId, { title: shortened(event.content ?? "") });
  if (!event.parent_run_id && (type === "agent_started" || type === "run_queued")) {
    activeRuns.set(runId, { ...event, state: type === "run_queued" ? "queued" : "running" });
    markThreads();
  }
  if (type === "agent_completed" && activeRuns.delete(runId)) markThreads();
  const begins = type === "user_message" || type === "agent_started" || type === "run_queued";
  const target = conversations.get(threadId) ?? (begins ? ensure(threadId) : null);
  if (!target) return;
  const answering = target === conversation && inQuestion();
  target.apply(event);
  if (target !== conversation) return;
  showEmpty();
  keepUp(event);
  if (type === "input_required") offerFocus(target.openInput(event.input_id));
  // What was answered takes its controls along: whoever was there goes on with the next question, or writes.
  else if (answering && !inQuestion()) (target.openInput() ?? $("composer")).focus();
}

// Questions of agents

/** An agent asks: say so, also where another conversation is shown. */
function asked({ thread_id: threadId, input_id: inputId, agent_name: agent }) {
  if (!session.pendingInputs.some((input) => input.input_id === inputId)) return; // a replay tells of one that was answered since
  if (!threads.has(threadId)) threads.touch(threadId);
  markThreads();
  if (threadId !== conversation?.threadId) announce(`${agent ?? "An agent"} asks in the conversation ${threads.titleOf(threadId)}`);
}

/** Questions of a thread that wait, without those that a replay is about to bring in their place. */
function waitingIn(threadId) {
  const told = replaying && [...activeRuns.values()].some((run) => run.thread_id === threadId && replayed.has(run.run_id));
  return told ? [] : session.pendingInputs.filter((input) => input.thread_id === threadId);
}

/** Everything has been replayed: show the questions that were not among it. */
function askWhatWaits() {
  replaying = false;
  for (const [threadId, target] of conversations) for (const input of waitingIn(threadId)) target.ask(input);
  offerFocus(conversation?.openInput());
}

function inQuestion() {
  return Boolean(document.activeElement?.closest('.input[data-status="open"]'));
}

/** Put the focus on a question, unless somebody is in the middle of something else. */
function offerFocus(input) {
  const active = document.activeElement;
  const idle = active === null || active === document.body || active === $("scroller") || (active === $("composer") && active.value === "");
  if (input && idle && !document.querySelector("dialog[open]") && !$("app").classList.contains("drawer-shown")) input.focus();
}

// Threads

const actions = {
  announce,
  serverNow: () => Date.now() / 1_000 + clockSkewS,
  stop: (runId) => told(session.stop(runId)),
  answer: (inputId, value) => session.answer(inputId, value),
  decline: (inputId) => session.decline(inputId),
  reload: (target) => fetchHistory(target, { again: true }),
  async older(target, before) {
    const height = $("scroller").scrollHeight;
    await told(session.history(target.threadId, { limit: PAGE_SIZE, before }).then((page) => target.prepend(page)));
    $("scroller").scrollTop += $("scroller").scrollHeight - height;
  },
};

/** Return the conversation of a thread; where it is new here, its history is on its way. */
function ensure(threadId) {
  let target = conversations.get(threadId);
  if (!target) {
    target = new Conversation(threadId, actions);
    conversations.set(threadId, target);
    fetchHistory(target);
    makeRoom();
  }
  return target;
}

function makeRoom() {
  for (const [threadId, old] of conversations) {
    if (conversations.size <= MAX_CONVERSATIONS) return;
    if (old === conversation || old.loading || old.activeRuns.length > 0) continue;
    old.dispose();
    conversations.delete(threadId);
  }
}

async function fetchHistory(target, { again = false } = {}) {
  if (again) {
    conversations.delete(target.threadId);
    const fresh = ensure(target.threadId);
    if (target === conversation) present(fresh);
    return;
  }
  const mine = session;
  const slow = setTimeout(() => target.loading && target.explain("Loading…"), 300);
  try {
    const history = await mine.history(target.threadId, { limit: PAGE_SIZE });
    if (conversations.get(target.threadId) !== target) return;
    const active = [...activeRuns.values()].filter((run) => run.thread_id === target.threadId);
    target.load(history, active, replayed, waitingIn(target.threadId));
    if (target === conversation) {
      showEmpty();
      toEnd();
      offerFocus(target.openInput());
    }
  } catch (error) {
    if (mine !== session || conversations.get(target.threadId) !== target) return;
    conversations.delete(target.threadId);
    if (target !== conversation) return;
    if (error.code === "NOT_FOUND") newConversation();
    else target.explain(`This conversation could not be loaded: ${error.message}`);
  } finally {
    clearTimeout(slow);
  }
}

async function loadThreads({ before } = {}) {
  try {
    const page = await session.threads({ limit: PAGE_SIZE, before });
    threads.add(page.threads ?? [], { replace: before === undefined });
    olderThreads = page.next ?? null;
    $("more-threads").hidden = olderThreads === null;
    for (const { thread_id: threadId } of session.pendingInputs) if (!threads.has(threadId)) threads.touch(threadId);
    showTitle();
  } catch (error) {
    if (session) notice(`The conversations could not be listed: ${error.message}`, "error");
  }
}

function show(threadId, { focus = true } = {}) {
  sessionStorage.setItem(THREAD_KEY, threadId);
  const target = ensure(threadId);
  conversations.delete(threadId); // to the end: most recently shown
  conversations.set(threadId, target);
  present(target);
  if (focus) $("composer").focus();
  offerFocus(target.openInput());
}

function newConversation() {
  sessionStorage.removeItem(THREAD_KEY);
  const target = new Conversation(`thread-${uniqueId()}`, actions);
  target.begin();
  conversations.set(target.threadId, target);
  if (conversation?.empty) conversations.delete(conversation.threadId);
  present(target);
  $("composer").focus();
}

function present(target) {
  conversation = target;
  $("conversation").replaceChildren(target.element);
  closeDrawer();
  markThreads();
  showTitle();
  showEmpty();
  toEnd();
}

function showTitle() {
  const known = conversation !== null && threads.has(conversation.threadId);
  $("title").textContent = known ? threads.titleOf(conversation.threadId) : "New conversation";
  $("thread-actions").hidden = !known;
  const waiting = session?.pendingInputs.length ?? 0;
  const name = known ? `${threads.titleOf(conversation.threadId)} – netra_ws` : "netra_ws console";
  document.title = waiting > 0 ? `(${waiting}) ${name}` : name;
}

function showEmpty() {
  $("empty").hidden = !conversation?.empty;
  $("conversation").hidden = Boolean(conversation?.empty);
}

function markThreads() {
  const busy = new Set([...activeRuns.values()].map((run) => run.thread_id));
  const asking = new Set((session?.pendingInputs ?? []).map((input) => input.thread_id));
  threads.mark(conversation?.threadId ?? null, busy, asking);
  showTitle();
}

function renamed(threadId, title) {
  threads.rename(threadId, title);
  if (conversation?.threadId === threadId) showTitle();
}

function deleted(threadId) {
  threads.remove(threadId);
  conversations.get(threadId)?.dispose();
  conversations.delete(threadId);
  for (const [runId, run] of activeRuns) if (run.thread_id === threadId) activeRuns.delete(runId);
  if (conversation?.threadId === threadId) newConversation();
}

// Saying something

async function send(text, { id = `console-${uniqueId()}`, log = null } = {}) {
  const mine = session;
  const target = conversation;
  const { threadId } = target;
  const isNew = !threads.has(threadId);
  target.addUnsent(id, text, log?.name);
  showEmpty();
  toEnd();
  sessionStorage.setItem(THREAD_KEY, threadId);
  const agent = $("agent").value || undefined;
  // Commands take effect in their order, so the thread has its title before its first message.
  if (isNew) mine.createThread({ threadId, title: shortened(text) }).catch(() => {});
  try {
    const run = await mine.start(text, { id, threadId, agent, jsonlLogs: log?.text });
    if (isNew && mine === session) threads.touch(threadId, { title: shortened(text) });
    target.sent(id, run.messageId);
    run.events.return();
    showTitle();
  } catch (error) {
    if (mine !== session) return;
    // After a deadline nobody knows whether it arrived: the same id makes sure that it counts once.
    const again = () => send(text, { id: error.code === "TIMEOUT" ? id : undefined, log });
    target.failed(id, error.message, again);
    if (conversations.get(threadId) !== target) notice(`Not sent: ${shortened(text)} (${error.message})`, "error");
    announce(`Not sent: ${error.message}`);
  }
}

function submit() {
  const text = $("composer").value.trim();
  if (text === "" || !session || session.state === "closed") return;
  $("composer").value = "";
  const log = attachment;
  setAttachment(null);
  fitComposer();
  send(text, { log });
}

function allowSending() {
  $("send").disabled = $("composer").value.trim() === "" || !session || session.state === "closed";
}

/** For browsers without `field-sizing`. */
function fitComposer() {
  const box = $("composer");
  if (!CSS.supports("field-sizing", "content")) box.rows = Math.min(10, box.value.split("\n").length);
  allowSending();
}

function offerAgents(names) {
  const chosen = $("agent").value;
  $("agent").replaceChildren(...names.map((name) => element("option", { value: name }, name)));
  if (names.includes(chosen)) $("agent").value = chosen;
  $("agent-picker").hidden = names.length < 2;
}

function setAttachment(log) {
  attachment = log;
  $("attachment").hidden = log === null;
  $("attachment-name").textContent = log ? `${log.name} · ${sizeWords(log.size)}` : "";
}

async function attach(file) {
  const limit = (session?.welcome?.limits?.max_message_bytes ?? 1_048_576) - MESSAGE_ROOM_BYTES;
  const tooBig = `${file.name} is too large: a message with its log may have ${sizeWords(limit)}.`;
  if (file.size > limit) return notice(tooBig, "error");
  const text = await file.text();
  // In a message the log is a JSON string: its quotes and line ends take two bytes each.
  const size = new TextEncoder().encode(JSON.stringify(text)).length;
  if (size > limit) return notice(tooBig, "error");
  if (text.trim() === "") return notice(`${file.name} is empty.`, "error");
  const broken = text.split("\n").findIndex((line) => line.trim() !== "" && !isJson(line));
  if (broken >= 0) return notice(`${file.name} is not a JSONL file: line ${broken + 1} is no JSON.`, "error");
  return setAttachment({ name: file.name, size: file.size, text });
}

function isJson(line) {
  try {
    JSON.parse(line);
    return true;
  } catch {
    return false;
  }
}

function sizeWords(bytes) {
  return bytes < 1_024 ? `${bytes} bytes` : bytes < 1_048_576 ? `${Math.round(bytes / 1_024)} KiB` : `${(bytes / 1_048_576).toFixed(1)} MiB`;
}

// Scrolling and the drawer

let followed = true; // whether the end was in view when somebody last scrolled
let roomSeen = 0; // height for which that was found
let seen = { top: 0, height: 0 }; // where the page stood, and how long it was
let endAsked = false;

function atEnd() {
  const box = $("scroller");
  return box.scrollHeight - box.scrollTop - box.clientHeight < 80;
}

/** Follow what was added, once a frame: asking for heights after each event would lay out the page each time. */
function keepUp({ type }) {
  if (!followed) {
    if (["agent_message", "tool_executing", "input_required"].includes(type)) $("to-latest").hidden = false;
  } else if (!endAsked) {
    endAsked = true;
    requestAnimationFrame(() => {
      endAsked = false;
      if (followed) toEnd();
    });
  }
}

function toEnd() {
  $("scroller").scrollTop = $("scroller").scrollHeight;
  $("to-latest").hidden = true;
  followed = true;
}

function openDrawer() {
  $("app").classList.add("drawer-shown");
  $("drawer-open").setAttribute("aria-expanded", "true");
  $("new-thread").focus();
}

function closeDrawer() {
  if (!$("app").classList.contains("drawer-shown")) return false;
  $("app").classList.remove("drawer-shown");
  $("drawer-open").setAttribute("aria-expanded", "false");
  $("drawer-open").focus();
  return true;
}

function onForm(id, call) {
  $(id).addEventListener("submit", (event) => {
    event.preventDefault();
    call();
  });
}

onForm("sign-in-form", () => {
  const pasted = $("sign-in-token").value.trim();
  const fromLink = pasted.match(/[#&]token=([^&\s]+)/); // a whole login link works, too
  signIn(fromLink ? decodeURIComponent(fromLink[1]) : pasted);
});
onForm("composer-form", submit);
onForm("rename-form", async () => {
  const title = $("rename-input").value.trim();
  const { threadId } = conversation;
  $("rename-dialog").close();
  if (title !== "" && (await told(session.renameThread(threadId, title)))) renamed(threadId, title);
});
onForm("delete-form", async () => {
  const { threadId } = conversation;
  $("delete-dialog").close();
  if (await told(session.deleteThread(threadId))) deleted(threadId);
});

const clicks = {
  "sign-out": () => signOut(),
  "new-thread": () => newConversation(),
  "more-threads": () => loadThreads({ before: olderThreads }),
  "drawer-open": openDrawer,
  "drawer-close": closeDrawer,
  scrim: closeDrawer,
  "to-latest": toEnd,
  attach: () => $("attach-file").click(),
  "attachment-remove": () => setAttachment(null),
  reconnect: () => (session?.state === "closed" ? begin() : session?.reconnect()),
  rename: () => {
    $("rename-input").value = threads.titleOf(conversation.threadId);
    $("rename-dialog").showModal();
    $("rename-input").select();
  },
  delete: () => {
    $("delete-text").textContent = `“${threads.titleOf(conversation.threadId)}” and its messages will be gone for good. What runs in it is stopped.`;
    $("delete-dialog").showModal();
  },
};
for (const [id, call] of Object.entries(clicks)) $(id).addEventListener("click", call);
for (const button of document.querySelectorAll(".dialog-cancel")) {
  button.addEventListener("click", () => button.closest("dialog").close());
}
for (const button of document.querySelectorAll(".example")) {
  button.addEventListener("click", () => {
    if (session && session.state !== "closed") send(button.textContent);
    $("composer").focus();
  });
}

$("attach-file").addEventListener("change", ({ target }) => {
  if (target.files[0]) attach(target.files[0]);
  target.value = "";
});
$("composer").addEventListener("input", fitComposer);
$("composer").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  submit();
});
$("scroller").addEventListener("scroll", () => {
  const { scrollTop: top, scrollHeight: height, clientHeight } = $("scroller");
  const up = top < seen.top - 1 && height >= seen.height; // a page that got shorter moves up by itself
  seen = { top, height };
  if (clientHeight !== roomSeen) return; // the observer below comes next
  // What was added since is not scrolled to yet: only who goes up leaves the end then.
  if (endAsked && !up) return;
  followed = atEnd();
  if (followed) $("to-latest").hidden = true;
}, { passive: true });
// A phone's keyboard, a turned phone or a longer question take room away from the end that is being read.
new ResizeObserver(() => {
  roomSeen = $("scroller").clientHeight;
  if (followed) toEnd();
}).observe($("scroller"));
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing || document.querySelector("dialog[open]")) return;
  if (event.target.closest?.(".input")) return $("composer").focus(); // leaves the question, and the run
  if (!closeDrawer()) conversation?.activeRuns.at(-1)?.stop();
});
addEventListener("hashchange", () => {
  if (takeTokenFromAddress()) {
    const leaving = session;
    session = null;
    leaving?.close();
    begin();
  }
});

takeTokenFromAddress();
fitComposer();
begin();
