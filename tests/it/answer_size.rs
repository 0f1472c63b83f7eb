//! Answers of a large realm: each fits into one message, and says what it leaves out. Through real sockets.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use dipylon_sdk::client::vote::ReviewedCard;
use dipylon_sdk::client::{OperatorClient, TaskHandle, TokenOutcome};
use dipylon_sdk::jose::SigningKey;
use dipylon_sdk::model::*;

use crate::support::disable;
use crate::support::served_broker::{ServedBroker, token_request};

const PEOPLE: usize = 500;
const AGENTS: usize = 40;
const RULES: usize = 120;
const PROFILES: usize = 700;
const KEYS: usize = 19;

/// The example's bundle with everything in it that an answer repeats, many times over.
fn large_bundle(served: &ServedBroker) -> BTreeMap<String, String> {
    let mut files = served.env.policy.clone();
    let people = files.get_mut("people.toml").expect("people");
    for n in 0..PEOPLE {
        let name = "N".repeat(120);
        write!(
            people,
            "\n[[person]]\nid = \"person-{n:04}\"\nname = \"{name}\"\ngroups = [\"security\"]\nroles = [\"approver\"]\n"
        )
        .expect("text");
    }
    for n in 0..PROFILES {
        write!(
            people,
            "\n[profile.profile-{n:04}]\ngroup = \"security\"\nquorum = 1\nwait = \"15m\"\n\
             good_for = \"10m\"\nmethod = \"key\"\n"
        )
        .expect("text");
    }
    for _ in 0..KEYS {
        let jwk = SigningKey::generate().expect("key").0.public().to_jwk();
        write!(
            people,
            "\n[[key]]\nof = \"maria\"\njwk = {{ kty = \"EC\", crv = \"P-256\", x = {}, y = {} }}\n",
            jwk["x"], jwk["y"]
        )
        .expect("text");
    }
    let mut silences = String::new();
    let agents = files.get_mut("agents.toml").expect("agents");
    for n in 0..AGENTS {
        let (model, id) = ("m".repeat(120), format!("agent-{n:04}"));
        write!(
            agents,
            "\n[[agent]]\nid = \"{id}\"\nspiffe_id = \"spiffe://soc.example/agent/{id}\"\nowner = \"dana\"\n\
             environment = \"prod\"\nmodel = \"{model}\"\nautonomy = \"supervised\"\ngroups = [{}]\nactions = [\"case.read\"]\n",
            groups(20)
        )
        .expect("text");
        for check in ["cannot-operate", "never-granted"] {
            write!(
                silences,
                "[[silence]]\ncheck = \"{check}\"\nof = \"{id}\"\nreason = \"{}\"\n",
                "because ".repeat(60)
            )
            .expect("text");
        }
    }
    // Far more groups than a message holds.
    let many = format!("groups = [\"soc\", {}]", groups(1_200));
    *agents = agents.replacen("groups = [\"soc\"]", &many, 1);
    let mut rules = String::new();
    for n in 0..RULES {
        let why = "because ".repeat(60);
        write!(
            rules,
            "@id(\"step-up-{n:04}\")\n@why(\"{why}\")\n@step_up(\"one-security\")\nforbid (principal, action == \
             Action::\"account.disable\", resource)\nunless {{ context.approvals.contains(StepUp::\"one-security\") }};\n"
        )
        .expect("text");
    }
    files.insert("checks.toml".to_owned(), silences);
    files.insert("rules/30-many.cedar".to_owned(), rules);
    let entities = files.get_mut("entities.json").expect("entities");
    *entities = entities.replacen("Ann Archer", &"A".repeat(90_000), 1);
    files
}

fn groups(count: usize) -> String {
    let names: Vec<String> = (0..count)
        .map(|n| format!("\"an-agent-group-with-a-long-name-{n:04}\""))
        .collect();
    names.join(", ")
}

async fn pending(task: &TaskHandle, key: &str) -> AccessRequestId {
    match task
        .request_token(&token_request(disable("ann"), key))
        .await
    {
        Ok(TokenOutcome::Pending(pending)) => pending.access_request_id(),
        other => panic!("not pending: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_of_a_large_realm_fit_into_messages() {
    let served = ServedBroker::start().await;
    let operator = served.operator("olga");
    let applied = operator
        .apply_policy_bundle(&large_bundle(&served))
        .await
        .expect("the answer to a bundle with many warnings");
    assert!(applied.changed);
    let last = applied.warnings.last().expect("warnings");
    assert!(
        last.starts_with("and ") && last.contains("policy check"),
        "{last}"
    );

    let approvers = operator.approvers().await.expect("people");
    assert_eq!(approvers.len(), PEOPLE + 4);
    let maria = approvers
        .iter()
        .find(|p| p.person_id == "maria")
        .expect("there");
    let left_out = usize::try_from(maria.left_out).expect("small");
    assert_eq!(maria.keys.len() + left_out, KEYS + 1);
    assert_eq!(
        operator
            .approver_statistics()
            .await
            .expect("statistics")
            .len(),
        PEOPLE + 3
    );
    assert!(operator.rules().await.expect("rules").len() > RULES);

    let agents = operator.agents().await.expect("agents");
    assert_eq!(agents.len(), AGENTS + 4);
    let triage = operator
        .agent(&AgentId::parse("triage").expect("id"))
        .await
        .expect("agent");
    let left_out = usize::try_from(triage.left_out).expect("small");
    assert_eq!(triage.groups.len() + left_out, 1_201);
    assert!(left_out > 0);

    approve_with_many_rules(&served, &operator).await;

    for n in 0..AGENTS {
        let scope = FreezeScope::parse(&format!("agent/agent-{n:04}")).expect("scope");
        let reason = "why ".repeat(500);
        operator.freeze(&scope, &reason).await.expect("frozen");
    }
    assert_eq!(operator.freezes().await.expect("freezes").len(), AGENTS);
    let page = operator.search("", None).await.expect("search");
    assert!(!page.entries.is_empty());

    let mut broken = served.env.policy.clone();
    let people = broken.get_mut("people.toml").expect("people");
    people.push_str(&"\n[[person]]\nid = \"\"\n".repeat(900));
    let refused = operator
        .apply_policy_bundle(&broken)
        .await
        .expect_err("refused");
    assert_eq!(refused.reason(), Some(Reason::InvalidPolicyBundle));
    let message = refused.to_string();
    assert!(
        message.contains("and ") && message.contains("lists every problem"),
        "{message}"
    );
}

/// A decision by more rules than a reply, a card or an explanation holds: each of them arrives.
async fn approve_with_many_rules(served: &ServedBroker, operator: &OperatorClient) {
    let task = served.task("triage").await;
    let id = pending(&task, "r-1").await;
    let rows = served.approver("maria").inbox().await.expect("inbox").rows;
    assert_eq!(rows.len(), 1);
    let maria = served.approver("maria");
    let card = maria.card(id).await.expect("card");
    let profile = ProfileName::parse("one-security").expect("profile");
    let attributes = card.target_attributes.as_ref().expect("known");
    assert!(
        attributes
            .iter()
            .any(|(_, text)| text.contains("more attributes"))
    );
    let seen = ReviewedCard {
        card: &card,
        realm: &Realm::parse("test").expect("realm"),
        profile: &profile,
        verdict: Verdict::Approve,
        narrowing: Narrowing::default(),
        comment: None,
    };
    maria.vote(&seen).await.expect("the vote counts");
    let explained = operator
        .explain(&id.to_string())
        .await
        .expect("explanation");
    let (label, text) = explained
        .lines
        .last()
        .map(|line| (&line.label, &line.text))
        .expect("lines");
    assert!(
        label == "left out" && text.contains("more lines"),
        "{label}: {text}"
    );
    let issued = task
        .request_token(&token_request(disable("ann"), "r-1"))
        .await;
    assert!(matches!(issued, Ok(TokenOutcome::Token(_))), "{issued:?}");
    let task_id = task.id();
    operator.timeline(task_id).await.expect("timeline");
    operator.explain(&task_id.to_string()).await.expect("task");
}
