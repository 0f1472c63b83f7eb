// The console's only script: passkey signatures, countdowns, live inbox, keyboard shortcuts. It decides nothing.
'use strict';
(() => {
  const $ = (selector, from = document) => from.querySelector(selector);
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];

  // ---- bytes and calls

  const bytes = (text) =>
    Uint8Array.from(atob(text.replace(/-/g, '+').replace(/_/g, '/')), (c) => c.charCodeAt(0));
  const text = (buffer) =>
    btoa(String.fromCharCode(...new Uint8Array(buffer))).replace(/\+/g, '-').replace(/\//g, '_').replace(/=+$/, '');

  class RequestError extends Error {
    constructor(message, reason) { super(message); this.reason = reason; }
  }

  async function post(path, body) {
    const answer = await fetch(path, {
      method: 'POST',
      headers: { 'content-type': 'application/json', accept: 'application/json' },
      body: JSON.stringify(body),
      credentials: 'same-origin',
      redirect: 'error',
    });
    if (answer.status === 204) return null;
    const reply = await answer.json().catch(() => ({}));
    if (!answer.ok) {
      const cause = reply.correlation_id ? ` (correlation id ${reply.correlation_id})` : '';
      throw new RequestError((reply.detail || `The broker answered with status ${answer.status}. Try again.`) + cause, reply.reason);
    }
    return reply;
  }

  function showError(message) {
    const place = $('#problem');
    if (!place) return;
    place.textContent = message;
    place.hidden = !message;
    if (message) place.scrollIntoView({ block: 'nearest' });
  }

  function errorMessage(error) {
    if (error instanceof RequestError) return error.message;
    if (error && error.name === 'NotAllowedError') return 'The passkey prompt was cancelled or timed out. Nothing was sent; try again.';
    if (error && error.name === 'InvalidStateError') return 'This device already has a passkey for this console. Sign in with it.';
    if (error && error.name === 'SecurityError') return 'Passkeys work only at the console\u2019s configured address. Open that address.';
    return `The request failed: ${error && error.message ? error.message : 'no reason given'}. Try again.`;
  }

  // A card of an earlier policy cannot be voted on.
  function requireReload() {
    showError('What this card shows has changed since. Reload the card and read it again.');
    $('#ballot').hidden = true;
    $('#reread').hidden = false;
    $('#reread').focus();
  }

  async function busy(button, work) {
    showError('');
    button.disabled = true;
    try {
      await work();
    } catch (error) {
      showError(errorMessage(error));
      if (error instanceof RequestError && ['POLICY_CHANGED', 'APPROVAL_VOID'].includes(error.reason)) requireReload();
    } finally {
      button.disabled = false;
    }
  }

  async function assertion(challenge, rpId, credentials) {
    const made = await navigator.credentials.get({
      publicKey: {
        challenge: bytes(challenge),
        rpId,
        userVerification: 'required',
        timeout: 120000,
        allowCredentials: (credentials || []).map((id) => ({ type: 'public-key', id: bytes(id) })),
      },
    });
    return {
      credential: text(made.rawId),
      authenticator_data: text(made.response.authenticatorData),
      client_data_json: text(made.response.clientDataJSON),
      signature: text(made.response.signature),
      user: made.response.userHandle ? text(made.response.userHandle) : null,
    };
  }

  // ---- sign-in and enrolment

  const signIn = $('#sign-in');
  if (signIn) {
    const to = signIn.dataset.to || '/console';
    // A link from another site arrives without the cookie (SameSite=Strict); this call sends it.
    fetch('/console/fragment/inbox', { credentials: 'same-origin', redirect: 'error' })
      .then((answer) => { if (answer.ok) location.replace(to); })
      .catch(() => {});
    signIn.disabled = false;
    signIn.addEventListener('click', () => busy(signIn, async () => {
      const begun = await post('/console/sign-in/begin', {});
      await post('/console/sign-in/finish', await assertion(begun.challenge, begun.rp_id, begun.credentials));
      location.replace(to);
    }));
  }

  const enrol = $('#enrol');
  if (enrol) {
    const code = $('#code');
    // The fragment never reaches a server, and is removed from the history.
    if (location.hash.length > 1) {
      code.value = decodeURIComponent(location.hash.slice(1));
      history.replaceState(null, '', location.pathname);
    }
    enrol.disabled = false;
    $('#enrolment').addEventListener('submit', (event) => {
      event.preventDefault();
      busy(enrol, async () => {
        const given = code.value.trim();
        const begun = await post('/console/enrol/begin', { code: given });
        const made = await navigator.credentials.create({
          publicKey: {
            challenge: bytes(begun.challenge),
            rp: { id: begun.rp_id, name: begun.rp_name },
            user: { id: bytes(begun.user), name: begun.name, displayName: begun.name },
            pubKeyCredParams: [-7, -8, -257].map((alg) => ({ type: 'public-key', alg })),
            authenticatorSelection: { residentKey: 'required', requireResidentKey: true, userVerification: 'required' },
            attestation: 'none',
            timeout: 120000,
            excludeCredentials: begun.exclude.map((id) => ({ type: 'public-key', id: bytes(id) })),
          },
        });
        const done = await post('/console/enrol/finish', {
          code: given,
          label: $('#label').value.trim(),
          client_data_json: text(made.response.clientDataJSON),
          attestation_object: text(made.response.attestationObject),
        });
        $('#enrolled-person').textContent = begun.name || done.person;
        $('#confirmation-code').textContent = done.confirmation_code;
        $('#confirmers').textContent = done.confirmers.join(' or ') || "the owner of the broker's host";
        $('#enrolment').hidden = true;
        $('#enrolled').hidden = false;
        $('#enrolled').focus();
      });
    });
  }

  // ---- events: one stream for each page of a signed-in person

  const live = new EventTarget();
  if ($('#sign-out') && 'EventSource' in window) {
    // Other pages follow while they are visible alone: over HTTP/1.1 a browser has six connections to a host.
    const stays = $('#inbox') || $('#card');
    let events = null;
    const follow = () => {
      if (events || (document.hidden && !stays)) return;
      const source = new EventSource('/console/events');
      events = source;
      for (const kind of ['open', 'changed']) source.addEventListener(kind, () => live.dispatchEvent(new Event(kind)));
      source.addEventListener('error', async () => {
        if (source.readyState !== EventSource.CLOSED) return;
        // The broker refused the stream. A page of an ended session shows nothing more: it becomes the sign-in page.
        const answer = await fetch('/console/fragment/inbox', { credentials: 'same-origin', redirect: 'error' }).catch(() => null);
        if (answer && answer.status === 401) { location.reload(); return; }
        events = null;
        setTimeout(follow, 15000);
      });
    };
    const leave = () => { if (events) events.close(); events = null; };
    follow();
    document.addEventListener('visibilitychange', () => { if (!document.hidden) follow(); else if (!stays) leave(); });
    addEventListener('pagehide', leave);
    // The back-forward cache keeps a page beyond its session.
    addEventListener('pageshow', (event) => { if (event.persisted) location.reload(); });
  }

  // ---- a vote

  const card = $('#card');
  const deny = $('#deny');
  const approve = $('#approve');
  if (card && deny && approve) {
    const id = card.dataset.request;
    const number = (selector, unit) => {
      const field = $(selector);
      const value = field ? field.value.trim() : '';
      if (value === '') return undefined;
      if (!/^\d{1,6}$/.test(value) || Number(value) < 1) throw new RequestError(`${unit}: expected a whole number, at least 1.`);
      return Number(value);
    };
    // As the card writes it: 5m 30s.
    const life = (seconds) => {
      const parts = [[86400, Infinity, 'd'], [3600, 24, 'h'], [60, 60, 'm'], [1, 60, 's']];
      const shown = parts.map(([by, below, word]) => [Math.floor(seconds / by) % below, word]).filter(([n]) => n > 0);
      return shown.map(([n, word]) => `${n}${word}`).join(' ') || '0s';
    };
    // The values of the fields are signed, whether the panel is open or not; the line beside the buttons shows them.
    const limits = () => ({ max_ttl: number('#narrow-ttl', 'Lifetime in seconds'), max_uses: number('#narrow-uses', 'Uses') });
    const signs = $('#signs');
    const signed = () => {
      try {
        const { max_ttl, max_uses } = limits();
        const uses = max_uses ?? signs.dataset.uses;
        signs.classList.toggle('narrowed', max_ttl !== undefined || max_uses !== undefined);
        return `${life(max_ttl ?? signs.dataset.ttl)}, ${uses === '' ? 'unlimited uses' : Number(uses) === 1 ? '1 use' : `${uses} uses`}`;
      } catch (problem) {
        signs.classList.add('narrowed');
        return `nothing. ${problem.message}`;
      }
    };
    // A proposal by a person asks for no token: nothing of one is signed or narrowed.
    const showSigned = () => { if (signs) $('b', signs).textContent = signed(); };
    if (signs) for (const moved of ['input', 'change']) $('#narrow').addEventListener(moved, showSigned);
    // A browser may restore earlier values of a field.
    addEventListener('pageshow', showSigned);
    showSigned();
    addEventListener('keydown', (event) => {
      if (event.key !== 'Escape' || $('#keys[open]')) return;
      const narrow = $('#narrow');
      if (!narrow) return;
      for (const field of all('input', narrow)) if (!field.readOnly) field.value = '';
      if (narrow.contains(document.activeElement)) $('summary', narrow).focus();
      narrow.open = false;
      showSigned();
    });
    $('#reread').addEventListener('click', () => location.reload());
    const vote = (verdict) => async () => {
      const profile = ($('input[name=profile]:checked') || $('input[name=profile]')).value;
      const ballot = { profile, policy: $('#ballot').dataset.policy, facts: $('#ballot').dataset.facts, verdict };
      const comment = $('#comment').value.trim();
      if (comment) ballot.comment = comment;
      if (verdict === 'approve') Object.assign(ballot, limits());
      const begun = await post(`/console/requests/${id}/vote/begin`, ballot);
      const answer = await assertion(begun.challenge, begun.rp_id, begun.credentials);
      const cast = await post(`/console/requests/${id}/vote/cast`, { statement: begun.statement, ...answer });
      decided(verdict, cast.status);
    };
    const decided = (verdict, status) => {
      card.dataset.status = status;
      $('#ballot').hidden = true;
      const outcome = $('#outcome');
      const isProposal = !signs;
      const words = verdict === 'deny' ? (isProposal ? 'You denied it. The policy bundle does not come in force.' : 'You denied the request. The agent is notified.')
        : status === 'waiting' ? 'You approved the request. It still needs other approvers.'
        : isProposal ? 'You agreed. The policy bundle comes in force.' : 'You approved the request. Its token can be requested now.';
      $('#outcome-text').textContent = words;
      outcome.hidden = false;
      outcome.focus();
    };
    let signing = false;
    const both = (work) => async () => {
      const hold = (on) => {
        deny.disabled = on;
        approve.disabled = on || dwelling();
        for (const field of all('#ballot input[type=text]')) field.readOnly = on;
        for (const choice of all('#ballot fieldset')) choice.disabled = on;
      };
      const voting = work();
      hold(true);
      signing = true;
      try { await voting; } finally { signing = false; hold(false); }
    };
    deny.addEventListener('click', () => busy(deny, both(vote('deny'))));
    approve.addEventListener('click', () => busy(approve, both(vote('approve'))));
    deny.disabled = false;

    // The broker enforces the reading time; here it is only shown.
    const label = approve.textContent;
    const until = performance.now() + Number(approve.dataset.dwell || 0);
    const dwelling = () => performance.now() < until;
    const count = () => {
      if (dwelling()) {
        approve.textContent = `Approve in ${Math.ceil((until - performance.now()) / 1000)} s`;
        setTimeout(count, 100);
      } else {
        approve.textContent = label;
        approve.disabled = false;
      }
    };
    count();

    // Votes of others and the deadline are shown before the approver signs in vain.
    const checkStatus = async () => {
      if (signing) return;
      const answer = await fetch(location.pathname, { credentials: 'same-origin', redirect: 'error' });
      if (!answer.ok) return;
      const fresh = new DOMParser().parseFromString(await answer.text(), 'text/html').querySelector('#card');
      const rows = '.part.needs .facts';
      if (fresh && $(rows, card) && $(rows, fresh)) $(rows, card).replaceChildren(...$(rows, fresh).childNodes);
      const time = 'header time[data-until]';
      if (fresh && $(time, card) && $(time, fresh)) $(time, card).replaceWith($(time, fresh));
      // Another card under the same address: it is read from its beginning.
      const shown = (page) => page.querySelector('#ballot')?.dataset.facts;
      if (fresh && shown(card) && shown(fresh) && shown(fresh) !== shown(card)) {
        location.reload();
        return;
      }
      if (signing || !fresh || fresh.dataset.status === card.dataset.status || $('#ballot').hidden) return;
      card.dataset.status = fresh.dataset.status;
      $('#ballot').hidden = true;
      $('#outcome-text').textContent = `This request is now ${fresh.dataset.status}. There is nothing left to decide.`;
      $('#outcome').hidden = false;
    };
    live.addEventListener('changed', () => checkStatus().catch(() => {}));
    const deadline = $('#card time[data-until], header time[data-until], time[data-until]');
    const wait = deadline ? Number(deadline.dataset.until) - Number(document.body.dataset.now || Date.now()) : 0;
    if (wait > 0 && wait < 2 ** 31) setTimeout(() => checkStatus().catch(() => {}), wait + 500);
  }

  // ---- time

  const ahead = Number(document.body.dataset.now || Date.now()) - Date.now();
  const unit = (n, word) => `${n} ${word}`;
  function left(ms) {
    const s = Math.floor(ms / 1000);
    if (s <= 0) return 'expired';
    if (s < 60) return unit(s, 's left');
    if (s < 600) return `${Math.floor(s / 60)}:${String(s % 60).padStart(2, '0')} left`;
    if (s < 7200) return unit(Math.floor(s / 60), 'min left');
    if (s < 172800) return unit(Math.floor(s / 3600), 'h left');
    return unit(Math.floor(s / 86400), 'days left');
  }
  function tick() {
    const now = Date.now() + ahead;
    for (const time of all('time[data-until]')) {
      const text = left(Number(time.dataset.until) - now);
      if (time.textContent !== text) time.textContent = text;
    }
  }
  tick();
  setInterval(tick, 1000);

  // ---- the inbox, live

  const inbox = $('#inbox');
  if (inbox) {
    let wanted = false;
    let asking = false;
    const refresh = async () => {
      wanted = true;
      if (asking) return;
      asking = true;
      try {
        while (wanted) {
          wanted = false;
          const answer = await fetch('/console/fragment/inbox', { credentials: 'same-origin', redirect: 'error' });
          if (answer.status === 401) { location.reload(); return; }
          if (!answer.ok) return;
          swap(await answer.text());
        }
      } catch { /* the next event retries */ } finally { asking = false; }
    };
    const swap = (html) => {
      const known = new Set(all('[data-request]', inbox).map((row) => row.dataset.request));
      const held = document.activeElement && document.activeElement.closest ? document.activeElement.closest('[data-request]') : null;
      // The rows are escaped by the broker; the parsed document is inert until its nodes are adopted.
      const page = new DOMParser().parseFromString(html, 'text/html');
      inbox.replaceChildren(...page.body.childNodes);
      for (const row of all('[data-request]', inbox)) if (!known.has(row.dataset.request)) row.classList.add('new');
      if (held) {
        const again = all('[data-request]', inbox).find((row) => row.dataset.request === held.dataset.request);
        if (again) $('.what', again).focus();
      }
      const count = $('#waiting', inbox);
      const n = count ? Number(count.dataset.count) : 0;
      document.title = document.title.replace(/^(\(\d+\) )?/, n ? `(${n}) ` : '');
      tick();
    };
    live.addEventListener('changed', refresh);
    live.addEventListener('open', refresh);
  }

  // ---- keys

  const keys = $('#keys');
  document.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.matches('input, textarea, select')) return;
    const rows = all('[data-request] .what');
    const step = (by) => {
      if (!rows.length) return;
      const at = rows.indexOf(document.activeElement);
      rows[at < 0 ? (by > 0 ? 0 : rows.length - 1) : Math.min(Math.max(at + by, 0), rows.length - 1)].focus();
    };
    const focus = (selector) => { const it = $(selector); if (it) it.focus(); };
    switch (event.key) {
      case 'j': step(1); break;
      case 'k': step(-1); break;
      case 'd': focus('#deny'); break;
      case 'a': focus('#approve'); break;
      case 'n': {
        const narrow = $('#narrow');
        if (!narrow) return;
        narrow.open = true;
        focus('#narrow-ttl');
        break;
      }
      case 'i': location.assign('/console'); break;
      case '?': if (keys) { if (keys.open) keys.close(); else keys.showModal(); } break;
      default: return;
    }
    event.preventDefault();
  });
})();
