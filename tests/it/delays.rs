//! Delays: a rule asks people, and lets through what none of them denied for a while.

use dipylon::broker::*;
use dipylon::journal::FaultInjection;
use dipylon_sdk::card::{AccessRequestStatus, CardDelay, render_chat};
use dipylon_sdk::model::*;

use crate::support::own_key::OwnKey;
use crate::support::passkey_votes::{approve, deny};
use crate::support::*;

const CARD: &str = "dipylon.v1.ApprovalService/GetCard";
const RULE: &str = r#"
@id("sessions-after-a-while")
@why("Security looks at it first, or lets it happen.")
@step_up("one-security")
@delay("10m")
forbid (principal, action == Action::"session.end", resource)
unless { context.approvals.contains(StepUp::"one-security") || context.waited >= duration("10m") };
"#;

const AND_ANOTHER: &str = r#"
@id("and-another")
@step_up("one-passkey")
forbid (principal, action == Action::"session.end", resource)
unless { context.approvals.contains(StepUp::"one-passkey") };
"#;

struct Delays {
    b: TestBroker,
    triage: TestAgent,
    task: TaskId,
}

fn environment(rules: &str) -> TestEnvironment {
    let mut env = TestEnvironment::new();
    env.policy
        .insert("rules/90-delay.cedar".to_owned(), rules.to_owned());
    env.policy.remove("tests.toml");
    env
}

impl Delays {
    async fn with(env: TestEnvironment) -> Self {
        let b = TestBroker::start_with(env, FaultInjection::default()).await;
        let triage = b.agent("triage");
        let task = b.open_task(&triage).await;
        Self { b, triage, task }
    }

    async fn start() -> Self {
        Self::with(environment(RULE)).await
    }

    async fn ask(&self, key: &str) -> Result<TokenReply, Refusal> {
        self.ask_about("ann", key).await
    }

    async fn ask_about(&self, account: &str, key: &str) -> Result<TokenReply, Refusal> {
        let Self { b, triage, task } = self;
        let evidence = Some(b.svid(triage));
        let action = action("session.end", "Account", account, IDP, &[]);
        b.request_token_with_evidence(triage, *task, &action, 300, key, evidence)
            .await
    }

    /// Time passes while the broker serves.
    async fn pass(&self, seconds: u32) {
        pass(&self.b, seconds).await;
    }

    fn at(&self, seconds: i64) -> Option<CardDelay> {
        let at = self.b.now().plus_secs(seconds);
        Some(CardDelay { at, needs: vec![] })
    }

    fn card(&self, id: AccessRequestId) -> String {
        let call = self.b.person_call(CARD, "lee");
        let card = self.b.broker.card(&call, &id).expect("a card");
        render_chat(&card, self.b.now())
    }

    async fn deny(&self, id: AccessRequestId) {
        self.b
            .vote("lee", id, "one-security", Verdict::Deny)
            .await
            .expect("denied");
    }

    async fn restart(self) -> Self {
        Self {
            b: self.b.restart(FaultInjection::default()).await,
            ..self
        }
    }
}

async fn pass(b: &TestBroker, seconds: u32) {
    for _ in 0..seconds / 20 {
        b.manual_clock.advance_millis(20_000);
        b.broker.maintenance_tick().await.expect("tick");
    }
    b.manual_clock.advance_millis(seconds % 20 * 1_000);
}

/// The assistant recommends ending a session, and the responder executes it; both bring evidence of the moment.
struct Recommended<'b> {
    b: &'b TestBroker,
    assistant: TestAgent,
    responder: TestAgent,
    recommends: TaskId,
    executes: TaskId,
}

impl<'b> Recommended<'b> {
    async fn by(b: &'b TestBroker) -> Self {
        let (assistant, responder) = (b.agent("assistant"), b.agent("responder"));
        Self {
            recommends: b.open_task(&assistant).await,
            executes: b.open_task(&responder).await,
            b,
            assistant,
            responder,
        }
    }

    async fn ask(
        &self,
        (agent, task): (&TestAgent, TaskId),
        key: &str,
        recommendation: Option<AccessRequestId>,
    ) -> Result<TokenReply, Refusal> {
        let input = RequestTokenInput {
            task,
            action: action("session.end", "Account", "ann", IDP, &[]),
            ttl: 300,
            reason: None,
            idempotency_key: IdempotencyKey::parse(key).expect("key"),
            wait_ms: 0,
            evidence: Some(self.b.svid(agent)),
            executor: None,
            recommendation,
        };
        self.b.request_with(agent, input).await
    }

    async fn recommend(&self) -> Result<TokenReply, Refusal> {
        self.ask((&self.assistant, self.recommends), "r", None)
            .await
    }

    async fn execute(&self, id: AccessRequestId) -> Result<TokenReply, Refusal> {
        self.ask((&self.responder, self.executes), "e", Some(id))
            .await
    }
}

/// A profile of one of the security group, by key.
fn one_of_security(name: &str) -> String {
    format!(
        "\n[profile.{name}]\ngroup = \"security\"\nquorum = 1\nwait = \"15m\"\ngood_for = \"15m\"\nmethod = \"key\"\n"
    )
}

fn names(needs: &[ProfileState]) -> Vec<&str> {
    needs.iter().map(|n| n.profile.name.as_str()).collect()
}

#[tokio::test]
async fn nobody_says_no_and_the_agent_asks_again() {
    let d = Delays::start().await;
    let asked = d.ask("s").await.pending();
    let id = asked.access_request;
    assert_eq!(asked.delay, d.at(600));
    let at = d.b.now().plus_secs(600);
    let shown = d.card(id);
    let unless = format!("allowed at {at} unless somebody says no");
    assert!(shown.contains(&unless), "{shown}");

    // A moment before it nothing is allowed, and no time issues a token by itself.
    d.pass(599).await;
    d.ask("s").await.pending();
    d.pass(1).await;
    d.b.broker.maintenance_tick().await.expect("tick");
    let request = d.b.broker.show().access_request(&id).expect("on record");
    assert!(request.is_pending(d.b.now()));
    // It stays with people, who may still say no.
    let shown = d.card(id);
    let since = format!("allowed since {at}: nobody has said no; a no still ends it");
    assert!(
        shown.contains(&since) && shown.contains("0 of 1 security"),
        "{shown}"
    );
    let call =
        d.b.person_call("dipylon.v1.ApprovalService/ListAccessRequests", "lee");
    let inbox = d.b.broker.inbox(&call, &first_inbox_page()).expect("inbox");
    assert_eq!(inbox.rows.len(), 1);
    assert_eq!(inbox.rows[0].access.status, AccessRequestStatus::Waiting);

    let issued = d.ask("s").await.token();
    let waited_ms = issued.issued.decision.input.waited_ms;
    assert_eq!(waited_ms, 600_000);
    assert!(issued.issued.approval.is_none() && issued.issued.consumed == Some(id));
    d.b.receipt(issued.issued.jti).await;
    // What is asked for next waits for itself.
    d.ask("t").await.pending();
    // The token goes on, through a sweep, and is repeated.
    d.b.broker.maintenance_tick().await.expect("tick");
    assert!(d.b.introspect("idp", &issued.token).await);
    assert!(d.ask("s").await.token().reissued);
    d.b.check_invariants();
}

/// A no ends it, also after the time and before the agent asks again.
#[tokio::test]
async fn a_no_ends_it() {
    for late in [false, true] {
        let d = Delays::start().await;
        let id = d.ask("s").await.pending().access_request;
        if late {
            d.pass(601).await;
        }
        d.deny(id).await;
        d.pass(601).await;
        let denied = d.ask("s").await.denied();
        assert_eq!(denied.why, DeniedReason::DeniedByApprover);
        d.b.check_invariants();
    }
}

/// A yes ends the wait, and a delay that nobody collects ends, too.
#[tokio::test]
async fn a_yes_needs_no_delay_and_a_delay_expires() {
    let d = Delays::start().await;
    let id = d.ask("s").await.pending().access_request;
    d.b.approve("lee", id, "one-security").await;
    let issued = d.ask("s").await.token();
    assert!(issued.issued.approval.is_some());

    let asked = d.ask("t").await.pending();
    // As long as the profile waits, after the delay.
    assert_eq!(asked.expires_at, d.b.now().plus_secs(600 + 900));
    d.pass(1_500).await;
    let denied = d.ask("t").await.denied();
    assert_eq!(denied.why, DeniedReason::Expired);
    d.b.check_invariants();
}

/// Silence counts only while people could be heard: not before a start, nor through a gap, nor a clock that jumped.
#[tokio::test]
async fn time_without_a_broker_is_no_silence() {
    let d = Delays::start().await;
    let id = d.ask("s").await.pending().access_request;
    d.pass(280).await;
    let d = d.restart().await;
    let asked = d.ask("s").await.pending();
    assert_eq!((asked.access_request, asked.delay), (id, d.at(600)));
    d.pass(570).await;
    d.ask("s").await.pending();

    // The process stood still: until the wait has begun anew, nothing has waited.
    d.b.manual_clock.advance_millis(31_000);
    let asked = d.ask("s").await.pending();
    assert_eq!(asked.delay, d.at(600 - 601));
    d.b.broker.maintenance_tick().await.expect("tick");
    let asked = d.ask("s").await.pending();
    assert_eq!((asked.access_request, asked.delay), (id, d.at(600)));
    d.pass(570).await;
    d.ask("s").await.pending();
    d.b.check_invariants();
}

/// What waits in silence is what people were shown: under another bundle the time begins anew, whatever it changes.
#[tokio::test]
async fn another_bundle_begins_anew() {
    let d = Delays::start().await;
    let id = d.ask("s").await.pending().access_request;
    d.pass(590).await;
    let mut files = d.b.env.policy.clone();
    let other = RULE.replace("looks at it first", "looks at it before");
    files.insert("rules/90-delay.cedar".to_owned(), other);
    d.b.apply_policy(files.clone()).await.expect("in force");
    let asked = d.ask("s").await.pending();
    assert_eq!((asked.access_request, asked.delay), (id, d.at(600)));
    d.pass(590).await;
    d.ask("s").await.pending();
    d.pass(10).await;
    d.ask("s").await.token();

    // Under a bundle without the delay the token would not have been issued.
    let strict = RULE
        .replace("@delay(\"10m\")\n", "")
        .replace(" || context.waited >= duration(\"10m\")", "");
    files.insert("rules/90-delay.cedar".to_owned(), strict);
    let live = d.b.broker.show().grants_of_task(&d.task);
    d.b.apply_policy(files).await.expect("in force");
    d.b.broker.maintenance_tick().await.expect("tick");
    let jti = &live[0].issued.jti;
    let grant = d.b.broker.show().grant(jti).expect("a grant");
    assert_eq!(grant.ended.map(|ended| ended.cause), Some(EndCause::Policy));
    d.b.check_invariants();
}

/// A delay that ends after the request does is none.
#[tokio::test]
async fn a_delay_that_the_request_does_not_live_to_see_is_not_shown() {
    let d = Delays::start().await;
    let asked = d.ask("s").await.pending();
    d.pass(590).await;
    let mut files = d.b.env.policy.clone();
    let longer = RULE.replace("10m", "20m");
    files.insert("rules/90-delay.cedar".to_owned(), longer);
    d.b.apply_policy(files).await.expect("in force");
    let again = d.ask("s").await.pending();
    assert_eq!(again.access_request, asked.access_request);
    assert_eq!((again.expires_at, again.delay), (asked.expires_at, None));
    let shown = d.card(asked.access_request);
    assert!(!shown.contains("unless somebody says no"), "{shown}");
    d.b.check_invariants();
}

/// What waited, and was collected with the approval that another rule asks for.
pub async fn collected() -> TestBroker {
    let d = Delays::with(environment(&format!("{RULE}{AND_ANOTHER}"))).await;
    let asked = d.ask("s").await.pending();
    assert_eq!(names(&asked.needs), ["one-passkey", "one-security"]);
    let needs = vec![ProfileName::parse("one-passkey").expect("profile")];
    let at = d.b.now().plus_secs(600);
    assert_eq!(asked.delay, Some(CardDelay { at, needs }));
    d.pass(500).await;
    let id = asked.access_request;
    d.b.approve("lee", id, "one-passkey").await;
    // Whoever has approved can do nothing but deny it, and so it stays in the inbox.
    let call =
        d.b.person_call("dipylon.v1.ApprovalService/ListAccessRequests", "lee");
    let mine = InboxQuery {
        mine: true,
        ..first_inbox_page()
    };
    let inbox = d.b.broker.inbox(&call, &mine).expect("inbox");
    assert_eq!((inbox.rows.len(), inbox.rows[0].vote.is_ok()), (1, false));
    d.pass(100).await;
    let shown = d.card(id);
    let since = format!("allowed since {at}: nobody has said no");
    assert!(shown.contains(&since), "{shown}");
    let issued = d.ask("s").await.token().issued;
    let claim = issued.approval.as_ref().expect("approved");
    assert_eq!(claim.profiles[0].as_str(), "one-passkey");
    d.b
}

/// A delay lifts its own forbid and replaces nobody whom another rule asks for.
#[tokio::test]
async fn a_delay_replaces_no_other_rule() {
    collected().await.check_invariants();
    let d = Delays::with(environment(&format!("{RULE}{AND_ANOTHER}"))).await;
    let asked = d.ask("s").await.pending();
    d.pass(600).await;
    d.ask("s").await.pending();
    let shown = d.card(asked.access_request);
    assert!(shown.contains("only one-passkey since"), "{shown}");
}

/// What silence would let through is what people were shown: with older evidence than theirs a rule asks that no card named.
#[tokio::test]
async fn silence_lifts_no_rule_that_the_card_did_not_name() {
    let of_old = r#"
@id("old-evidence-takes-a-passkey")
@step_up("one-passkey")
@delay("5m")
forbid (principal, action == Action::"session.end", resource)
when { context.evidence.issued_age > duration("2m") }
unless { context.approvals.contains(StepUp::"one-passkey") || context.waited >= duration("5m") };
"#;
    let d = Delays::with(environment(&format!("{RULE}{of_old}"))).await;
    let asked = d.ask("s").await.pending();
    assert_eq!(names(&asked.needs), ["one-security"]);
    d.pass(300).await;
    let old = d.b.svid(&d.triage);
    d.pass(300).await;
    let end = action("session.end", "Account", "ann", IDP, &[]);
    let (agent, task) = (&d.triage, d.task);
    let request =
        d.b.request_token_with_evidence(agent, task, &end, 300, "s", Some(old));
    let refused = request.await;
    assert!(!matches!(refused, Ok(TokenReply::Token(_))), "{refused:?}");
    d.ask("s").await.token();
    d.b.check_invariants();
}

/// A time that denies it changes nothing in what people were asked, whatever counts ask for it; a bundle that comes meanwhile begins the
/// wait anew.
#[tokio::test]
async fn a_time_that_denies_it_leaves_it_with_people() {
    let rules = r#"
@id("again-after-a-while")
@step_up("one-security")
@delay("10m")
forbid (principal, action == Action::"session.end", resource)
unless {
  context.counts.ends < 1 ||
  context.approvals.contains(StepUp::"one-security") ||
  context.waited >= duration("10m")
};
@id("short-tokens-for-a-minute")
forbid (principal, action == Action::"session.end", resource)
when { context.ttl > duration("4m") && context.now >= datetime("FROM") && context.now < datetime("TO") };
"#;
    let mut env = environment("");
    env.policy.insert(
        "counts.toml".to_owned(),
        "[count.ends]\ntitle = \"Sessions ended\"\nof = \"tokens\"\nper = [\"agent\"]\nwithin = \"1h\"\n".to_owned(),
    );
    let from = Timestamp::from_secs(1_800_000_100);
    let rules = rules
        .replace("FROM", &from.to_string())
        .replace("TO", &from.plus_secs(60).to_string());
    env.policy.insert("rules/90-delay.cedar".to_owned(), rules);
    let d = Delays::with(env).await;
    d.ask("first").await.token();
    let id = d.ask_about("cara", "s").await.pending().access_request;
    let opened_at = d.b.now();
    d.pass(110).await;
    let request = d.b.broker.show().access_request(&id).expect("on record");
    assert!(request.is_pending(d.b.now()));
    assert_eq!(request.required_profiles().len(), 1);
    assert_eq!(request.required_since, opened_at);
    assert!(d.card(id).contains("unless somebody says no"));

    // Another bundle in that minute.
    let rules = &d.b.env.policy["rules/90-delay.cedar"];
    let mut files = d.b.env.policy.clone();
    let other = format!("{rules}\n// Other words.\n");
    files.insert("rules/90-delay.cedar".to_owned(), other);
    let before = d.b.now();
    d.b.apply_policy(files).await.expect("in force");
    d.b.broker.maintenance_tick().await.expect("tick");
    let request = d.b.broker.show().access_request(&id).expect("on record");
    assert!(request.is_pending(d.b.now()) && request.required_since >= before);
    d.pass(490).await;
    d.ask_about("cara", "s").await.pending();
    d.pass(120).await;
    d.ask_about("cara", "s").await.token();
    d.b.check_invariants();
}

/// What is left after a delay depends on who has approved: the profile that a delay would lift may be another one's by then.
#[tokio::test]
async fn a_yes_for_one_of_several_profiles_keeps_the_delay() {
    let forbid = |id: &str, remedy: &str, by: &str| {
        format!(
            "@id(\"{id}\") {remedy} forbid (principal, action == Action::\"session.end\", resource) unless {{ {by} }};\n"
        )
    };
    let any = |names: &[&str]| {
        let names: Vec<_> = names.iter().map(|n| format!("StepUp::\"{n}\"")).collect();
        format!("context.approvals.containsAny([{}])", names.join(", "))
    };
    let delayed = format!(
        "{} || context.waited >= duration(\"10m\")",
        any(&["a", "c"])
    );
    let rules = [
        forbid("r1", "@step_up(\"a\") @delay(\"10m\")", &delayed),
        forbid("r2", "@step_up(\"c\")", &any(&["c", "b"])),
        forbid("r3", "@step_up(\"b\")", &any(&["b"])),
    ];
    let mut env = environment(&rules.concat());
    env.policy = env.policy_with("people.toml", |text| {
        let all = ["a", "b", "c"].map(one_of_security);
        [text, &all.concat()].concat()
    });
    let d = Delays::with(env).await;
    let asked = d.ask("s").await.pending();
    assert!(asked.delay.is_some(), "{:?}", names(&asked.needs));
    d.b.approve("lee", asked.access_request, "b").await;
    assert_eq!(d.ask("s").await.pending().delay, d.at(600));
    d.pass(600).await;
    d.ask("s").await.token();
    d.b.check_invariants();
}

/// Facts that the rules read stand with what waits: a restart begins the wait anew under them, and another fact does too.
#[tokio::test]
async fn silence_is_under_the_facts_that_the_card_showed() {
    let by_fact = r#"
@id("in-an-incident-with-a-passkey")
@step_up("one-passkey")
@delay("5m")
forbid (principal, action == Action::"session.end", resource)
when { context.facts.incident }
unless { context.approvals.contains(StepUp::"one-passkey") || context.waited >= duration("5m") };
"#;
    let mut env = environment(&format!("{RULE}{by_fact}"));
    let facts = "[fact.incident]\ntitle = \"An incident is being handled\"\nsafe = true\nnormal = false\nmax = \"1h\"\n";
    env.policy.insert("facts.toml".to_owned(), facts.to_owned());
    let d = Delays::with(env).await.restart().await;
    let id = d.ask("s").await.pending().access_request;
    d.pass(300).await;
    let d = d.restart().await;
    let asked = d.ask("s").await.pending();
    assert_eq!((asked.access_request, asked.delay), (id, d.at(600)));
    d.pass(500).await;
    let call =
        d.b.person_call("dipylon.v1.GovernanceService/SetFact", "olga");
    let set = FactOrder {
        fact: FactName::parse("incident").expect("fact"),
        value: true,
        seconds: Some(3_600),
        reason: None,
    };
    d.b.broker.set_fact(&call, &set).await.expect("set");
    d.pass(100).await;
    let asked = d.ask("s").await.pending();
    assert_eq!(names(&asked.needs), ["one-passkey", "one-security"]);
    d.b.check_invariants();
}

/// After a no to anything that the agent asks, silence says nothing about its other requests.
#[tokio::test]
async fn one_no_is_no_silence_elsewhere() {
    let d = Delays::start().await;
    let id = d.ask("s").await.pending().access_request;
    let other = d.ask_about("cara", "t").await.pending();
    assert!(other.delay.is_some());
    d.deny(id).await;
    assert_eq!(d.ask_about("cara", "t").await.pending().delay, None);
    d.pass(600).await;
    let asked = d.ask_about("cara", "t").await.pending();
    assert_eq!(asked.access_request, other.access_request);
    // A yes is needed, and enough.
    d.b.approve("lee", other.access_request, "one-security")
        .await;
    d.ask_about("cara", "t").await.token();
    d.b.check_invariants();
}

/// Somebody who agreed to less is heard, also where the others said nothing.
#[tokio::test]
async fn silence_gives_no_more_than_the_one_who_answered() {
    let mut env = environment(&RULE.replace("one-security", "two-keys"));
    env.policy = env.policy_with("people.toml", |text| format!(
        "{text}\n[profile.two-keys]\ngroup = \"security\"\nquorum = 2\nwait = \"15m\"\ngood_for = \"15m\"\nmethod = \"key\"\n"
    ));
    let d = Delays::with(env).await;
    let id = d.ask("s").await.pending().access_request;
    let narrow = VoteInput {
        profile: ProfileName::parse("two-keys").expect("profile"),
        narrowing: Narrowing {
            max_ttl: Some(60),
            max_uses: None,
        },
        ..approve()
    };
    let lee = &d.b.env.keys["lee"];
    d.b.vote_with(lee, id, narrow).await.expect("counts");
    d.pass(600).await;
    let issued = d.ask("s").await.token().issued;
    assert_eq!(issued.exp - issued.iat, 60);
    d.b.check_invariants();
}

/// Whoever may approve such requests now may say no to one that waits, whenever they came.
#[tokio::test]
async fn a_no_with_a_key_from_after_the_opening_is_heard() {
    let second = OwnKey::generate();
    let d = Delays::start().await;
    let id = d.ask("s").await.pending().access_request;
    let files =
        d.b.env
            .policy_with("people.toml", |text| format!("{text}{}", second.row("lee")));
    d.b.apply_policy(files).await.expect("in force");
    let refusal = d.b.vote_with(&second.key, id, approve()).await;
    assert_eq!(refusal.expect_err("too new").reason, Reason::NotEligible);
    d.b.vote_with(&second.key, id, deny()).await.expect("heard");
    let denied = d.ask("s").await.denied();
    assert_eq!(denied.why, DeniedReason::DeniedByApprover);
    d.b.check_invariants();
}

/// An advisory agent's recommendation waits like any request: the executor gets its token once nobody said no, with the approvals that
/// every recommendation takes.
#[tokio::test]
async fn a_recommendation_is_handed_over_after_a_delay() {
    let rule = RULE.replace("one-security", "one-release");
    let always = AND_ANOTHER.replace("one-passkey", "one-security");
    let mut env = environment(&format!("{rule}{always}"));
    env.policy = env.policy_with("people.toml", |text| {
        [text, &one_of_security("one-release")].concat()
    });
    let d = Delays::with(env).await;
    let (b, both) = (&d.b, Recommended::by(&d.b).await);
    let asked = both.recommend().await.pending();
    let id = asked.access_request;
    assert_eq!(names(&asked.needs), ["one-release", "one-security"]);
    let needs = vec![ProfileName::parse("one-security").expect("profile")];
    let at = b.now().plus_secs(600);
    assert_eq!(asked.delay, Some(CardDelay { at, needs }));
    pass(b, 590).await;
    b.approve("dana", id, "one-security").await;
    both.execute(id).await.pending();
    pass(b, 10).await;
    let recommended = both.recommend().await.recommended();
    assert_eq!(recommended.access_request, id);
    let issued = both.execute(id).await.token().issued;
    assert_eq!(issued.decision.input.waited_ms, 600_000);
    let claim = issued.approval.as_ref().expect("approved");
    assert_eq!(claim.profiles[0].as_str(), "one-security");
    b.receipt(issued.jti).await;
    b.check_invariants();
}

/// What the executor's rules ask alone is less than what was asked for both: silence answers it all the same.
#[tokio::test]
async fn a_delay_of_both_agents_is_handed_over() {
    let forbid = |id: &str, of: &str, profile: &str, by: &str| {
        format!(
            "@id(\"{id}\") @step_up(\"{profile}\") @delay(\"10m\") forbid ({of}, action == Action::\"session.end\", resource) \
             unless {{ context.approvals.containsAny([{by}]) || context.waited >= duration(\"10m\") }};\n"
        )
    };
    let two = "StepUp::\"two\"";
    let rules = [
        forbid("r1", "principal", "one", &format!("StepUp::\"one\", {two}")),
        forbid("r2", "principal == Agent::\"assistant\"", "two", two),
        "@id(\"r3\") @step_up(\"one-security\") forbid (principal, action == Action::\"session.end\", resource) \
         unless { context.approvals.contains(StepUp::\"one-security\") };\n"
            .to_owned(),
    ];
    let mut env = environment(&rules.concat());
    env.policy = env.policy_with("people.toml", |text| {
        [text, &one_of_security("one"), &one_of_security("two")].concat()
    });
    let d = Delays::with(env).await;
    let (b, both) = (&d.b, Recommended::by(&d.b).await);
    let asked = both.recommend().await.pending();
    assert_eq!(names(&asked.needs), ["one-security", "two"]);
    let id = asked.access_request;
    pass(b, 600).await;
    // Before everybody is asked whom the card asks to the end, the executor waits like the agent that recommends.
    both.execute(id).await.pending();
    b.approve("dana", id, "one-security").await;
    let issued = both.execute(id).await.token().issued;
    assert_eq!(issued.decision.input.waited_ms, 600_000);
    b.receipt(issued.jti).await;
    b.check_invariants();
}

/// Whom the card asks after the delay has to approve, also where the agent asks for less then.
#[tokio::test]
async fn silence_replaces_nobody_whom_the_card_asks_to_the_end() {
    let rules = r#"
@id("p") @step_up("p") @delay("10m")
forbid (principal, action == Action::"session.end", resource)
unless { context.approvals.contains(StepUp::"p") || context.waited >= duration("10m") };
@id("q-for-long") @step_up("q")
forbid (principal, action == Action::"session.end", resource)
unless { context.ttl <= duration("4m") || context.approvals.contains(StepUp::"q") };
@id("q") @step_up("q") @delay("10m")
forbid (principal, action == Action::"session.end", resource)
unless { context.approvals.contains(StepUp::"q") || context.waited >= duration("10m") };
"#;
    let mut env = environment(rules);
    env.policy = env.policy_with("people.toml", |text| {
        [text, &one_of_security("p"), &one_of_security("q")].concat()
    });
    let d = Delays::with(env).await;
    let asked = d.ask("s").await.pending();
    let needs = vec![ProfileName::parse("q").expect("profile")];
    assert_eq!(asked.delay.map(|delay| delay.needs), Some(needs));
    d.pass(600).await;
    let short = async || {
        let evidence = Some(d.b.svid(&d.triage));
        let end = action("session.end", "Account", "ann", IDP, &[]);
        d.b.request_token_with_evidence(&d.triage, d.task, &end, 200, "s", evidence)
            .await
    };
    short().await.pending();
    d.b.approve("lee", asked.access_request, "q").await;
    short().await.token();
    d.b.check_invariants();
}

/// Keys that are gone when the time is over could have said no until then; the gate looks for them itself.
#[tokio::test]
async fn the_gate_asks_who_could_say_no() {
    let d = Delays::start().await;
    d.ask("s").await.pending();
    d.pass(600).await;
    for person in ["lee", "maria", "dana"] {
        d.b.revoke_keys_of(person, None).await.expect("revoked");
    }
    let denied = d.ask("s").await.denied();
    assert_eq!(denied.why, DeniedReason::NoEligibleApprover);
    d.b.check_invariants();
}

/// Where nobody is left who could say no, silence says nothing, and the request ends, also at a time that denies it.
#[tokio::test]
async fn silence_of_nobody_is_none() {
    let mut env = environment("");
    let from = Timestamp::from_secs(1_800_000_100);
    let night = format!(
        "@id(\"night\") forbid (principal, action == Action::\"session.end\", resource) \
         when {{ context.ttl > duration(\"4m\") && context.now >= datetime(\"{from}\") }};"
    );
    env.policy
        .insert("rules/90-delay.cedar".to_owned(), format!("{RULE}{night}"));
    let d = Delays::with(env).await;
    let id = d.ask("s").await.pending().access_request;
    d.pass(120).await;
    for person in ["lee", "maria", "dana"] {
        d.b.revoke_keys_of(person, None).await.expect("revoked");
    }
    d.b.manual_clock.advance_millis(3_000);
    d.b.broker.maintenance_tick().await.expect("tick");
    let request = d.b.broker.show().access_request(&id).expect("on record");
    assert!(!request.is_pending(d.b.now()), "{:?}", request.status);
    d.b.check_invariants();
}

/// An agent that ends its task while a person is about to say no has had the answer: silence elsewhere is none.
#[tokio::test]
async fn a_task_that_ends_takes_no_denial_back() {
    let d = Delays::start().await;
    d.ask("s").await.pending();
    let triage = d.b.agent("triage");
    let other = Delays {
        task: d.b.open_task(&triage).await,
        triage,
        b: d.b,
    };
    let id = other.ask_about("cara", "t").await.pending().access_request;
    let b = &other.b;
    b.begin_vote("lee", id, "one-security", Verdict::Deny)
        .await
        .expect("begun");
    b.complete_task(&other.triage, other.task)
        .await
        .expect("ends");
    let d = Delays {
        triage: d.triage,
        task: d.task,
        b: other.b,
    };
    assert_eq!(d.ask("s").await.pending().delay, None);
    d.pass(600).await;
    d.ask("s").await.pending();
    d.b.check_invariants();
}
