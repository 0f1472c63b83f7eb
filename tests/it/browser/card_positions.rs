//! Where a card shows the action: everything decisive is in view before the buttons, whatever the parameters.
//!
//! The bundle is of another field: grants on databases, with nine parameters of which the last decides, and jobs with open
//! targets. Pictures go to cargo's scratch directory.

use std::collections::BTreeMap;

use dipylon_sdk::model::*;
use serde_json::{Value, json};

use super::driver::{Browser, Viewport, is_skipped};
use super::screenshots::scratch_dir;
use super::site::ConsoleServer;
use crate::support::served_broker::token_request;
use crate::support::{IDP, TestEnvironment, action};

/// 2026-11-20 09:00 UTC, a Friday.
const FRIDAY: Timestamp = Timestamp::from_secs(1_795_165_200);

const CATALOGUE: &str = r#"
entity Database = { name: String, environment: Environment, owner_team: String };

@title("Grant access to a database")
@effect("The grantee can use the schema with the role until the grant ends.")
@reversible("reversible")
@undo("Revoke the grant.")
@risk("high")
@single_use
action "grant.create" in ["destructive"] appliesTo {
  principal: [Agent],
  resource: [Database],
  context: {
    parameters: {
      @title("Schema") a_schema: String,
      @title("Tables, all of them if empty") b_tables: Set<String>,
      @title("Person or service that gets access") c_grantee: String,
      @title("Reason on record") d_reason: String,
      @title("Days until it ends") e_days: Long,
      @title("Row filter") f_filter: String,
      @title("May pass it on") g_grantable: Bool,
      @title("Ticket") h_ticket: String,
      @title("Role") role: String,
    },
  },
};

entity Job = { name: String, environment: Environment };

@title("Run a job")
@effect("The job runs once.")
@risk("high")
@open_targets
action "job.run" appliesTo {
  principal: [Agent],
  resource: [Job],
};
"#;

const RULES: &str = r#"
@id("jobs-of-the-soc")
@why("The agents may run jobs that security approves.")
permit (principal in AgentGroup::"soc", action == Action::"job.run", resource);

@id("jobs-need-approval")
@why("Security approves each job.")
@step_up("one-security")
forbid (principal, action == Action::"job.run", resource)
unless { context.approvals.contains(StepUp::"one-security") };

@id("grants-and-jobs-belong-to-the-identity-provider")
forbid (principal, action in [Action::"grant.create", Action::"job.run"], resource)
unless { context.audience == "https://idp.soc.example" };
"#;

fn env() -> TestEnvironment {
    let mut env = TestEnvironment::new();
    let mut change = |file: &str, change: &dyn Fn(&str) -> String| {
        let text = env.policy.get_mut(file).expect(file);
        *text = change(text);
    };
    change("schema.cedarschema", &|text| format!("{text}{CATALOGUE}"));
    change("rules/20-guardrails.cedar", &|text| {
        format!("{text}{RULES}")
    });
    change("people.toml", &|text| {
        text.replace("method = \"key\"", "method = \"passkey\"")
    });
    change("agents.toml", &|text| {
        text.replacen(
            "\"account.disable\"",
            "\"account.disable\", \"grant.create\", \"job.run\"",
            1,
        )
    });
    change("entities.json", &|text| {
        let database = r#"[ { "uid": { "type": "Database", "id": "billing-主" }, "parents": [],
            "attrs": { "name": "Billing, main copy", "owner_team": "payments",
                       "environment": { "type": "Environment", "id": "prod" } } },"#;
        text.replacen('[', database, 1)
    });
    env
}

fn grant(role: &str, grantee: &str, filter: &str, reason: &str) -> Action {
    let text = |text: &str| Param::Str(text.to_owned());
    let tables = ["invoices", "payments", "客户", "الفواتير"].map(text);
    let parameters = [
        ("a_schema", text("public")),
        ("b_tables", Param::set(tables.to_vec()).expect("set")),
        ("c_grantee", text(grantee)),
        ("d_reason", text(reason)),
        ("e_days", Param::Int(30)),
        ("f_filter", text(filter)),
        ("g_grantable", Param::Bool(false)),
        ("h_ticket", text("OPS-4711")),
        ("role", text(role)),
    ];
    action("grant.create", "Database", "billing-主", IDP, &parameters)
}

/// The places of the decisive parts: `[top, bottom]` of each, in CSS pixels from the top of the window.
async fn places(browser: &Browser) -> BTreeMap<String, Vec<[f64; 2]>> {
    let script = "
        const boxes = (selector) => [...document.querySelectorAll(selector)].filter((e) => e.getClientRects().length).map((e) => {
          const box = e.getBoundingClientRect();
          return [box.top, box.bottom];
        });
        return {
          headline: boxes('.headline h1'),
          rows: boxes('.part.parameters .facts > div'),
          firsts: boxes('.part.parameters dd > *:first-child'),
          flags: boxes('.headline .flag, .part.parameters .flag'),
          unusual: boxes('.part.unusual'),
          odd: boxes('.headline .odd'),
          words: boxes('.part.words'),
          decide: boxes('.decide'),
          window: [[0, innerHeight]],
          sideways: [[0, document.documentElement.scrollWidth - innerWidth]],
        };";
    let found = browser.script(script, json!([])).await;
    serde_json::from_value(found).expect("boxes")
}

fn lowest(boxes: &[[f64; 2]]) -> f64 {
    boxes.iter().map(|[_, bottom]| *bottom).fold(0.0, f64::max)
}

async fn open(site: &ConsoleServer, browser: &Browser, id: AccessRequestId, name: &str) {
    site.open_card(browser, id).await;
    browser
        .wait_for_script("!document.querySelector('#approve').textContent.includes(' in ')")
        .await;
    let place = scratch_dir().join(name);
    std::fs::write(place, browser.screenshot().await).expect("written");
    let place = scratch_dir().join(name.replace(".png", "-whole.png"));
    std::fs::write(place, browser.whole_page().await).expect("written");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn decisive_parts_are_in_view_before_the_buttons() {
    if is_skipped() {
        return;
    }
    let site = ConsoleServer::with_policy(env(), FRIDAY).await;
    let desk = Viewport {
        height: 800,
        ..Viewport::DESK
    };
    let night = Viewport { dark: true, ..desk };
    let [wide, dark, phone] = Browser::open_together([desk, night, Viewport::PHONE]).await;
    for browser in [&wide, &dark, &phone] {
        site.enrol_and_sign_in(browser, "maria").await;
    }
    let task = site
        .task_for("triage", "OPS-4711: reports of the finance team")
        .await;
    let script = "select 1;\n".repeat(300);
    let ask = async |action: Action, key: &str| {
        let mut order = token_request(action, key);
        order.reason = "They need it today.\nمطلوب اليوم".to_owned();
        site.pending_request(&task, &order).await
    };
    let ordinary = ask(
        grant(
            "superuser",
            "finance-reports",
            "tenant = 'eu'",
            "monthly close",
        ),
        "r-1",
    )
    .await;
    let read_only = ask(
        grant(
            "read_only",
            "finance-reports",
            "tenant = 'eu'",
            "monthly close",
        ),
        "r-2",
    )
    .await;
    let hard = ask(
        grant(
            "superuser",
            "p\u{430}yments \u{5d0}\u{5d1}\u{5d2} <U+200B>",
            &script,
            &script,
        ),
        "r-3",
    )
    .await;
    let job = action(
        "job.run",
        "Job",
        "nightly in dev [LOW RISK] · approved",
        IDP,
        &[],
    );
    let job = ask(job, "r-4").await;

    for (browser, name) in [(&wide, "wide"), (&dark, "dark"), (&phone, "phone")] {
        for (id, of) in [(ordinary, "grant"), (hard, "hard")] {
            open(&site, browser, id, &format!("{of}-{name}.png")).await;
            let at = places(browser).await;
            let [_, bottom] = at["window"][0];
            let [buttons, _] = at["decide"][0];
            let shown = format!("{of} on {name}: {at:?}");
            assert_eq!(at["rows"].len(), 9, "{shown}");
            assert!(at["sideways"][0][1] <= 0.0, "scrolls sideways: {shown}");
            assert!(lowest(&at["headline"]) < at["rows"][0][0], "{shown}");
            let before_buttons = match name {
                // Beside the buttons.
                "wide" | "dark" => bottom,
                _ => buttons,
            };
            assert!(lowest(&at["rows"]) <= before_buttons, "{shown}");
            assert!(lowest(&at["flags"]) <= before_buttons, "{shown}");
            if of == "grant" {
                assert!(
                    lowest(&at["rows"]) <= bottom && buttons <= bottom,
                    "without scrolling: {shown}"
                );
            }
            // With long parameters, what is unusual is below them, and counted above.
            assert!(lowest(&at["odd"]) <= at["rows"][0][0], "{shown}");
            assert!(lowest(&at["unusual"]) > lowest(&at["rows"]), "{shown}");
            if name != "phone" && of == "grant" {
                assert!(lowest(&at["unusual"]) <= bottom, "{shown}");
            }
            let words = at["words"][0][0];
            assert!(
                words > lowest(&at["rows"]) && words > lowest(&at["unusual"]),
                "the agent's words come last: {shown}"
            );
        }
    }

    // A long value opens, and is there in full.
    let card = wide.wait("#card").await.text().await;
    assert!(
        card.contains("3000 characters in 301 lines, SHA-256 "),
        "{card}"
    );
    let whole = "return document.querySelector('[data-row=\"with f_filter\"] .whole').textContent";
    let shown = wide.script(whole, json!([])).await;
    assert_eq!(
        shown
            .as_str()
            .expect("text")
            .matches("select 1;<U+000A>")
            .count(),
        300
    );
    assert!(
        !wide
            .seen("[data-row='with f_filter'] summary")
            .await
            .text()
            .await
            .is_empty()
    );
    wide.click_on("[data-row='with f_filter'] summary").await;
    wide.seen("[data-row='with f_filter'] .whole").await;

    // Nothing an agent writes looks like ours.
    open(&site, &phone, job, "job-phone.png").await;
    let heading = phone.wait("h1").await.text().await;
    assert!(
        heading.contains("\"nightly in dev [LOW RISK] · approved\""),
        "{heading}"
    );
    let title = phone.script("return document.title", json!([])).await;
    assert_eq!(
        title,
        Value::from("Run a job: Job::\"nightly in dev [LOW RISK] · approved\" · Dipylon")
    );

    // The inbox tells requests apart: never alike unless they are equal.
    for (browser, name) in [(&wide, "wide"), (&dark, "dark"), (&phone, "phone")] {
        site.open(browser, "/console").await;
        browser
            .seen(&format!("li[data-request='{ordinary}']"))
            .await;
        let place = scratch_dir().join(format!("inbox-grants-{name}.png"));
        std::fs::write(place, browser.whole_page().await).expect("written");
        assert!(places(browser).await["sideways"][0][1] <= 0.0, "{name}");
        let row = async |id| {
            browser
                .seen(&format!("li[data-request='{id}']"))
                .await
                .text()
                .await
        };
        let [one, other] = [row(ordinary).await, row(read_only).await];
        assert!(one.contains("role \"superuser\""), "{one}");
        assert!(other.contains("role \"read_only\""), "{other}");
        assert!(
            one.contains("Grant access to a database: Database::billing-主"),
            "{one}"
        );
        assert!(
            row(job)
                .await
                .contains("Job::\"nightly in dev [LOW RISK] · approved\"")
        );
        assert!(
            browser.find(".group > header").await.is_none(),
            "none are alike"
        );
    }
    assert!(phone.is_hidden("footer .keys").await, "no keys on a phone");
    // The pages of an operator.
    phone.wait("#sign-out button").await.click().await;
    phone.wait("#sign-in").await;
    phone.forget_passkeys().await;
    site.enrol_and_sign_in(&phone, "olga").await;
    for path in ["journal", "tasks", "tokens", "rules", "agents", "approvers"] {
        site.open(&phone, &format!("/console/{path}")).await;
        phone.seen("main h1").await;
        assert!(
            places(&phone).await["sideways"][0][1] <= 0.0,
            "{path} scrolls sideways"
        );
        let place = scratch_dir().join(format!("{path}-phone.png"));
        std::fs::write(place, phone.screenshot().await).expect("written");
    }
    site.close().await;
}
