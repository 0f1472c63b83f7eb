//! Passkey votes: opens the console in a browser and waits until the access request is decided.

use std::io::IsTerminal as _;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use serde_json::json;

use super::error::CliError;
use super::{Output, card};
use crate::card::{AccessRequestStatus, Card, escape_untrusted};
use crate::client::ApproverClient;
use crate::clock::Clock;
use crate::model::{Exit, Verdict};

/// Interval between two reads of the card.
const POLL_INTERVAL: Duration = Duration::from_secs(2);

/// Prints the console page, opens it on a desktop, and waits until the access request is decided or expires.
pub(super) async fn wait_for_console_vote(
    output: &Output,
    approver: &ApproverClient,
    card: Card,
    verdict: Verdict,
) -> Result<ExitCode, CliError> {
    if card.status == AccessRequestStatus::Waiting {
        let page = console_page(&card)?;
        output.note(&format!(
            "this request requires a passkey: vote at the console, where the phrase is {}\n  {page}",
            card.phrase()
        ));
        if !output.is_json() && std::io::stdout().is_terminal() {
            open_browser(&page);
        }
    }
    wait_until_decided(output, approver, card, verdict).await
}

/// Waits until the access request is decided or expires; the exit code is that of an approver who wanted `verdict`.
pub(super) async fn wait_until_decided(
    output: &Output,
    approver: &ApproverClient,
    mut card: Card,
    verdict: Verdict,
) -> Result<ExitCode, CliError> {
    let id = card.access_request;
    let mut approvals_before = count_approvals(&card);
    while card.status == AccessRequestStatus::Waiting {
        tokio::time::sleep(POLL_INTERVAL).await;
        card = approver.card(id).await?;
        let approvals = count_approvals(&card);
        if approvals > approvals_before && card.status == AccessRequestStatus::Waiting {
            output.note(&format!("{approvals} approvals; more are needed"));
        }
        approvals_before = approvals;
    }
    let status = card.status;
    output.print(
        || json!({ "card": card::to_json(&card), "status": status.as_str() }),
        || format!("{id} is {}", status.as_str()),
    );
    Ok(ExitCode::from(exit_code(status, verdict).number()))
}

/// The exit code for an approver who wanted `verdict`.
pub(super) const fn exit_code(status: AccessRequestStatus, verdict: Verdict) -> Exit {
    match (status, verdict) {
        (AccessRequestStatus::Approved | AccessRequestStatus::Consumed, Verdict::Approve) => {
            Exit::Success
        }
        (AccessRequestStatus::Denied, Verdict::Deny) => Exit::Success,
        (AccessRequestStatus::Denied, Verdict::Approve) => Exit::Denied,
        (AccessRequestStatus::Expired | AccessRequestStatus::ApprovalExpired, _) => {
            Exit::ApprovalTimeout
        }
        (AccessRequestStatus::Waiting, _) => Exit::Pending,
        (AccessRequestStatus::Approved | AccessRequestStatus::Consumed, Verdict::Deny) => {
            Exit::Conflict
        }
        (AccessRequestStatus::Cancelled | AccessRequestStatus::Ended, _) => Exit::Conflict,
    }
}

fn count_approvals(card: &Card) -> usize {
    card.needs.iter().map(|need| need.approvers.len()).sum()
}

/// The console page, if its URL is safe to pass to another program.
fn console_page(card: &Card) -> Result<String, CliError> {
    let page = card.console_url.clone().unwrap_or_default();
    let web = page.starts_with("https://") || page.starts_with("http://");
    if web
        && page == escape_untrusted(&page)
        && !page.contains([' ', '"', '\'', '\\', '`', '$', '<', '>'])
    {
        Ok(page)
    } else {
        Err(CliError::failed(
            "this request requires a passkey, and the broker gives no valid console URL",
        ))
    }
}

/// Opens the page in a browser on a desktop. Failing to open is no error: the URL is printed.
fn open_browser(page: &str) {
    let linux = ["DISPLAY", "WAYLAND_DISPLAY"];
    let program = if cfg!(target_os = "macos") {
        "open"
    } else if linux.iter().any(|name| std::env::var_os(name).is_some()) {
        "xdg-open"
    } else {
        return;
    };
    let _not_opened = tokio::process::Command::new(program)
        .arg(page)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn();
}

/// Waits for the rest of the minimum reading time that the broker requires.
/// `viewed_at` is the uptime at which the card was shown.
pub(super) async fn wait_for_dwell(card: &Card, clock: &Clock, viewed_at: Duration) {
    let dwell = Duration::from_secs(card.dwell_s.into());
    let viewed = clock.uptime().saturating_sub(viewed_at);
    tokio::time::sleep(dwell.saturating_sub(viewed)).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::card::sample;

    #[test]
    fn only_web_urls_are_opened() {
        let page_of = |url: Option<&str>| {
            console_page(&Card {
                console_url: url.map(str::to_owned),
                ..sample::card()
            })
        };
        let good = "https://broker.example/console/requests/areq_x";
        assert_eq!(page_of(Some(good)).expect("a page"), good);
        for bad in [
            None,
            Some(""),
            Some("file:///etc/passwd"),
            Some("javascript:alert(1)"),
            Some("--help"),
            Some("https://a.example/\u{202E}b"),
            Some("https://a.example/$(id)"),
            Some("https://a.example/a b"),
        ] {
            assert!(page_of(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn exit_code_by_final_status() {
        for (status, verdict, code) in [
            (AccessRequestStatus::Approved, Verdict::Approve, 0),
            (AccessRequestStatus::Consumed, Verdict::Approve, 0),
            (AccessRequestStatus::Denied, Verdict::Approve, 10),
            (AccessRequestStatus::Denied, Verdict::Deny, 0),
            (AccessRequestStatus::Approved, Verdict::Deny, 15),
            (AccessRequestStatus::Expired, Verdict::Approve, 12),
            (AccessRequestStatus::Expired, Verdict::Deny, 12),
            (AccessRequestStatus::ApprovalExpired, Verdict::Approve, 12),
            (AccessRequestStatus::Ended, Verdict::Approve, 15),
            (AccessRequestStatus::Cancelled, Verdict::Deny, 15),
        ] {
            assert_eq!(
                exit_code(status, verdict).number(),
                code,
                "{status:?} {verdict:?}"
            );
        }
    }
}
