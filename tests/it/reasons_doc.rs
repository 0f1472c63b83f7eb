//! The page of reasons (`REASONS.md`) matches the table in code.

use std::path::Path;

use dipylon_sdk::model::*;

#[test]
fn reasons_doc_matches_table() {
    let mut page = String::from(
        "Every reason of a refusal or denial, by the same name in gRPC (`ErrorInfo.reason`), the command line (`--json`) and the\n\
         client library, with its HTTP status. A test compares this page with the table.\n\n\
         Refused calls. With detail `operator` the caller gets only the text, and an operator finds the detail with\n\
         `dipylon explain`:\n\n\
         | reason | gRPC | HTTP | exit | text | detail | retry | what to do |\n|---|---|---|---|---|---|---|---|\n",
    );
    for r in Reason::ALL {
        let detail = match r.detail() {
            DetailVisibility::Caller => "caller",
            DetailVisibility::Operator => "operator",
        };
        let (code, http, exit) = (r.code().as_str(), r.code().http(), r.exit().number());
        page.push_str(&format!(
            "| `{r}` | {code} | {http} | {exit} | {} | {detail} | {} | {} |\n",
            r.text(),
            r.retry(),
            r.next_step()
        ));
    }
    page.push_str("\nDenials by gate 2 (an OK reply in gRPC):\n\n| reason | exit | text | what to do |\n|---|---|---|---|\n");
    for r in DeniedReason::ALL {
        let exit = r.exit().number();
        page.push_str(&format!(
            "| `{r}` | {exit} | {} | {} |\n",
            r.text(),
            r.next_step()
        ));
    }
    page.push_str("\nExit codes of the command line:\n\n| exit | |\n|---|---|\n");
    for exit in Exit::ALL {
        page.push_str(&format!("| {} | {} |\n", exit.number(), exit.text()));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("sdk/src/model/REASONS.md");
    if std::env::var_os("DIPYLON_BLESS").is_some() {
        std::fs::write(&path, &page).expect("written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        page, written,
        "REASONS.md is stale: run with DIPYLON_BLESS=1"
    );
}
