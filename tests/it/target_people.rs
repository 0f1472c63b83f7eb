//! People whom the target names approve what is done to it.

use std::collections::BTreeMap;

use dipylon::broker::*;
use dipylon::journal::FaultInjection;
use dipylon_sdk::model::*;

use crate::support::*;

const RULE: &str = r#"
@id("leads-read")
@why("Whoever leads a case knows who may read it.")
@step_up("case-lead")
forbid (principal, action == Action::"case.read", resource)
unless { context.approvals.contains(StepUp::"case-lead") };
"#;

/// The lead of each case, in the order of the entities: INC-8841 and INC-8850.
fn files(plain: &BTreeMap<String, String>, leads: [&str; 2]) -> BTreeMap<String, String> {
    let mut files = plain.clone();
    files.insert("rules/90-leads.cedar".to_owned(), RULE.to_owned());
    files.remove("tests.toml");
    let schema = files.get_mut("schema.cedarschema").expect("schema");
    *schema = schema.replace("entity Case = {", "entity Case = {\n  lead?: String,");
    let entities = files.get_mut("entities.json").expect("entities");
    for (case, lead) in ["INC-8841", "INC-8850"].into_iter().zip(leads) {
        let attributes = format!("\"id\": \"{case}\" }}, \"parents\": [],\n    \"attrs\": {{");
        assert!(entities.contains(&attributes), "{entities}");
        let with = format!("{attributes} \"lead\": \"{lead}\",");
        *entities = entities.replace(&attributes, &with);
    }
    files.get_mut("people.toml").expect("people").push_str(
        "\n[profile.case-lead]\ntarget_attribute = \"lead\"\nwait = \"15m\"\ngood_for = \"10m\"\nmethod = \"key\"\n",
    );
    files
}

struct Cases {
    b: TestBroker,
    plain: BTreeMap<String, String>,
    triage: TestAgent,
    task: TaskId,
}

impl Cases {
    /// maria leads the first case; triage's owner the second.
    async fn start() -> Self {
        let mut env = TestEnvironment::new();
        let plain = env.policy.clone();
        env.policy = files(&plain, ["maria", "dana"]);
        let b = TestBroker::start_with(env, FaultInjection::default()).await;
        let triage = b.agent("triage");
        let task = b.open_task(&triage).await;
        Self {
            b,
            plain,
            triage,
            task,
        }
    }

    async fn read(&self, case: &str, key: &str) -> Result<TokenReply, Refusal> {
        let read = action("case.read", "Case", case, CASES, &[]);
        self.b
            .request_token(&self.triage, self.task, &read, 300, key)
            .await
    }

    async fn vote(&self, name: &str, id: AccessRequestId) -> Result<AccessView, Refusal> {
        self.b.vote(name, id, "case-lead", Verdict::Approve).await
    }
}

#[tokio::test]
async fn the_person_whom_the_target_names_approves() {
    let c = Cases::start().await;
    let asked = c.read("INC-8841", "r").await.pending();
    let need = &asked.needs[0];
    assert_eq!(
        (need.profile.name.as_str(), need.group.as_str()),
        ("case-lead", "lead of Case::\"INC-8841\"")
    );
    let id = asked.access_request;
    let refused = c.vote("lee", id).await.expect_err("another's case");
    assert!(
        refused.message.contains("not in the profile's group"),
        "{refused}"
    );
    c.vote("maria", id).await.expect("counts");
    let issued = c.read("INC-8841", "r").await.token();
    assert!(issued.issued.approval.is_some());
    let receipt = c.b.receipt(issued.issued.jti).await;
    let group = receipt.profiles[0].group.as_str();
    assert_eq!(group, "lead of Case::\"INC-8841\"");
    // An agent's owner never approves for it, whatever they lead.
    let denied = c.read("INC-8850", "s").await.denied();
    assert_eq!(denied.why, DeniedReason::NoEligibleApprover);
    // A target without one has nobody.
    let unknown = c.read("INC-9999", "t").await;
    assert!(!matches!(
        unknown,
        Ok(TokenReply::Token(_) | TokenReply::Pending(_))
    ));

    c.b.check_invariants();
}

/// Who leads one case less still decides about the others.
#[tokio::test]
async fn a_case_that_goes_takes_no_vote_elsewhere() {
    let c = Cases::start().await;
    let both = files(&c.plain, ["lee", "lee"]);
    c.b.apply_policy(both).await.expect("in force");
    let id = c.read("INC-8841", "r").await.pending().access_request;
    c.vote("lee", id).await.expect("counts");
    let one = files(&c.plain, ["lee", "dana"]);
    c.b.apply_policy(one).await.expect("in force");
    c.read("INC-8841", "r").await.token();
    c.b.check_invariants();
}

/// Who leads a case from a later bundle on decides about later requests.
#[tokio::test]
async fn a_later_lead_decides_about_later_requests() {
    let c = Cases::start().await;
    let id = c.read("INC-8841", "r").await.pending().access_request;
    c.vote("maria", id).await.expect("counts");
    let later = files(&c.plain, ["lee", "dana"]);
    c.b.apply_policy(later).await.expect("in force");
    // Nobody is left for what waited: maria leads it no more, and lee came later.
    let ended = c.b.broker.show().access_request(&id).expect("on record");
    assert!(!ended.is_pending(c.b.now()), "{:?}", ended.status);
    let again = c.read("INC-8841", "s").await.pending();
    assert_ne!(again.access_request, id);
    c.vote("maria", again.access_request)
        .await
        .expect_err("no lead any more");
    c.vote("lee", again.access_request).await.expect("counts");
    c.read("INC-8841", "s").await.token();
    c.b.check_invariants();
}
