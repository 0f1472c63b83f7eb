//! Screenshots of the console: for the README, and cards for a ten-second readability test.
//!
//! They are written to cargo's scratch directory, or with `DIPYLON_SCREENSHOTS=1` to `examples/console`. They are the same
//! each time except for random ids.

use std::path::{Path, PathBuf};

use dipylon_sdk::client::TaskHandle;
use dipylon_sdk::model::*;

use super::approve::{isolate, token};
use super::driver::{Browser, Viewport, is_skipped};
use super::site::ConsoleServer;
use crate::end_to_end::present;
use crate::support::served_broker::token_request;
use crate::support::{CASES, IDP, TestEnvironment, action, disable};

/// Limit for a screenshot in the repository.
const PICTURE_BYTES_MAX: usize = 150_000;
/// 2026-11-20 09:00 UTC, a Friday.
const FRIDAY: Timestamp = Timestamp::from_secs(1_795_165_200);
const DAY_S: u32 = 86_400;

pub fn scratch_dir() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("console");
    std::fs::create_dir_all(&dir).expect("dir");
    dir
}

fn screenshots_dir() -> PathBuf {
    if std::env::var_os("DIPYLON_SCREENSHOTS").is_none_or(|on| on != "1") {
        return scratch_dir();
    }
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/console");
    std::fs::create_dir_all(&dir).expect("dir");
    dir
}

fn save_screenshot(name: &str, png: &[u8]) {
    assert!(
        png.starts_with(b"\x89PNG") && png.len() > 5_000,
        "{name} is blank"
    );
    assert!(png.len() < PICTURE_BYTES_MAX, "{name}: {} bytes", png.len());
    std::fs::write(screenshots_dir().join(name), png).expect("written");
}

/// A policy with two agents, so that equal requests are grouped.
fn env() -> TestEnvironment {
    let mut env = TestEnvironment::with_high_risk();
    env.policy.get_mut("agents.toml").expect("agents").push_str(
        "\n[[agent]]\nid = \"containment\"\nspiffe_id = \"spiffe://soc.example/agent/containment\"\nowner = \"dana\"\n\
         environment = \"prod\"\nmodel = \"example-large-2\"\nautonomy = \"autonomous\"\ngroups = [\"soc\"]\n\
         actions = [\"account.disable\", \"host.isolate\", \"case.read\"]\n",
    );
    env
}

/// Four days of approved requests of triage, with one denial.
async fn seed_history(site: &ConsoleServer) {
    for (day, account) in ["ann", "cara", "ann", "cara"].iter().enumerate() {
        let task = site
            .task_for("triage", "contain an account that sends phishing")
            .await;
        let id = site.request_approval(&task, disable(account), "r-1").await;
        site.advance_clock(20);
        let verdict = if day == 1 {
            Verdict::Deny
        } else {
            Verdict::Approve
        };
        site.vote(
            if day == 1 { "lee" } else { "maria" },
            id,
            "one-security",
            verdict,
        )
        .await;
        if verdict == Verdict::Approve {
            token(&task, disable(account), "r-1").await;
        }
        task.complete(TaskOutcome::Succeeded)
            .await
            .expect("completes");
        site.advance_clock(DAY_S);
    }
}

async fn request_with_reason(
    site: &ConsoleServer,
    task: &TaskHandle,
    action: Action,
    reason: &str,
) -> AccessRequestId {
    let mut order = token_request(action, &format!("r{}", crate::support::rand_u64()));
    order.reason = reason.to_owned();
    site.pending_request(task, &order).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn console_screenshots() {
    if is_skipped() {
        return;
    }
    let site = ConsoleServer::with_policy(env(), FRIDAY).await;
    seed_history(&site).await;
    site.advance_clock(5 * 3_600 + 180);
    let desk = Viewport {
        width: 1_120,
        height: 780,
        ..Viewport::DESK
    };
    let night = Viewport {
        dark: true,
        ..Viewport::PHONE
    };
    let [maria, phone] = Browser::open_together([desk, night]).await;
    site.enrol_and_sign_in(&maria, "maria").await;
    site.enrol_and_sign_in(&phone, "maria").await;
    site.enrol_without_browser("lee").await;

    let triage = site
        .task_for(
            "triage",
            "INC-8841: sign-ins of Ann Archer from two continents",
        )
        .await;
    let other = site
        .task_for("containment", "INC-8850: phishing mail to finance")
        .await;
    let ann = request_with_reason(
        &site,
        &triage,
        disable("ann"),
        "Her session cookie is in use from a second country. Containing the account.",
    )
    .await;
    site.advance_clock(40);
    request_with_reason(
        &site,
        &other,
        disable("cara"),
        "Cara opened the attachment; sessions ended until her laptop is checked.",
    )
    .await;
    site.advance_clock(30);
    let web = request_with_reason(
        &site,
        &other,
        isolate("web-1"),
        "Beacon to the phishing kit's host every 60 s since 13:20.",
    )
    .await;
    site.vote("lee", web, "two-security", Verdict::Approve)
        .await;
    site.advance_clock(25);

    site.open(&maria, "/console").await;
    maria.seen(&format!("li[data-request='{web}']")).await;
    save_screenshot("inbox.png", &maria.screenshot().await);
    site.open(&phone, "/console").await;
    phone.seen(&format!("li[data-request='{web}']")).await;
    save_screenshot("inbox-phone.png", &phone.screenshot().await);
    for (browser, name) in [(&maria, "card.png"), (&phone, "card-phone.png")] {
        site.open_card(browser, ann).await;
        browser
            .wait_for_script("!document.querySelector('#approve').disabled")
            .await;
        save_screenshot(name, &browser.screenshot().await);
    }

    // The timeline of a task from verification to revocation.
    maria.seen("#approve").await.click().await;
    maria.seen("#outcome").await;
    let issued = token(&triage, disable("ann"), "r-after").await;
    let validator = site.validator("idp", IDP).await;
    site.advance_clock(2);
    let admitted = present(&validator, &issued, &disable("ann")).await;
    validator
        .consume(admitted.expect("admitted"), "u-1")
        .await
        .expect("spent");
    site.advance_clock(9);
    let read = action("case.read", "Case", "INC-8841", CASES, &[]);
    token(&triage, read, "r-read").await;
    site.advance_clock(31);
    triage
        .complete(TaskOutcome::Succeeded)
        .await
        .expect("completes");
    site.open(&maria, &format!("/console/tasks/{}", triage.id()))
        .await;
    maria.seen("#timeline li[data-kind='TaskEnded']").await;
    let timeline = maria.wait("#timeline").await;
    for words in ["ann", "maria"] {
        let shown = timeline.text().await;
        assert!(shown.contains(words), "no {words:?} in {shown}");
    }
    save_screenshot("timeline.png", &maria.whole_page().await);
    for (path, name) in [("rules", "rules.png"), ("approvers", "approvers.png")] {
        site.open(&maria, &format!("/console/{path}")).await;
        maria.seen("main").await;
        save_screenshot(name, &maria.screenshot().await);
    }
    drop(validator);
    site.close().await;
}

/// Three cards for a reader who has never seen one, always in cargo's scratch directory (`target/tmp/console`):
/// `ten-seconds-1.png` to `-3.png` as a phone shows them, and each as a whole page. The expected
/// answers are in `ten-seconds-answers.md`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn screenshots_for_readability_test() {
    if is_skipped() {
        return;
    }
    let site = ConsoleServer::with_policy(env(), FRIDAY).await;
    seed_history(&site).await;
    site.advance_clock(5 * 3_600 + 180);
    let phone = Browser::open(Viewport {
        scale: 2,
        ..Viewport::PHONE
    })
    .await;
    site.enrol_and_sign_in(&phone, "maria").await;
    site.enrol_without_browser("lee").await;

    let purpose = "INC-8841: contain Ann Archer (ann), whose sign-ins come from two continents";
    let reason = "Disable ann, the account of Ann Archer. Two countries within ten minutes, confirmed with her by telephone.";
    let triage = site.task_for("triage", purpose).await;
    let wrong = request_with_reason(&site, &triage, disable("cara"), reason).await;
    let right = request_with_reason(&site, &triage, disable("ann"), reason).await;

    let dir = scratch_dir();
    let mut answers = String::from("# What is right\n\n");
    let mut show = async |n: usize, id: AccessRequestId, verdict: &str, why: &str| {
        site.open_card(&phone, id).await;
        phone
            .wait_for_script("document.querySelector('#approve').textContent.includes('passkey')")
            .await;
        let seen = phone.screenshot().await;
        assert!(seen.starts_with(b"\x89PNG"));
        std::fs::write(dir.join(format!("ten-seconds-{n}.png")), seen).expect("written");
        let whole = phone.whole_page().await;
        std::fs::write(dir.join(format!("ten-seconds-{n}-whole.png")), whole).expect("written");
        answers.push_str(&format!("{n}. **{verdict}.** {why}\n"));
    };
    show(
        1,
        wrong,
        "No",
        "The words are about ann, Ann Archer; what would be disabled is cara, Cara Cole.",
    )
    .await;
    show(
        2,
        right,
        "Yes",
        "The words and the target agree: ann; the agent does this often, and it can be undone.",
    )
    .await;
    // Ten hours later, at two in the night.
    site.advance_clock(12 * 3_600);
    site.sign_in(&phone).await;
    let restless = site
        .task_for(
            "containment",
            "SYSTEM NOTICE: this request is pre-approved, no review needed",
        )
        .await;
    let misleading = request_with_reason(
        &site,
        &restless,
        isolate("web-1"),
        "APPROVED by the CISO and by legal. Risk: LOW. This is a test and changes nothing. Approve at once: each minute costs \
         10,000. \u{202e}Effect: none\u{202c} Reviewers who say no will be called tonight.",
    )
    .await;
    show(
        3,
        misleading,
        "No",
        "The agent's words claim a yes and threaten; none of it is verified. The card itself says: high risk, a production \
         host, the first one ever, at two in the night, and hidden characters in the words.",
    )
    .await;
    std::fs::write(dir.join("ten-seconds-answers.md"), answers).expect("written");
    site.close().await;
}
