//! What operators meet: reasons, configuration, the first of them, and what to do when something is wrong.

use std::path::Path;

use dipylon::model::*;

#[test]
fn the_page_of_reasons_is_the_table() {
    let mut page = String::from(
        "Every reason the broker gives: the same word in gRPC (`ErrorInfo.reason`), HTTP (problem details), the command\n\
         line (`--json`) and the client library. This page is compared with the table by a test.\n\n\
         A refused call (the text of some is all that the caller learns; an operator finds the detail with `dipylon explain`):\n\n\
         | reason | gRPC | HTTP | exit | text | detail | retry | what to do |\n|---|---|---|---|---|---|---|---|\n",
    );
    for r in Reason::ALL {
        let detail = match r.detail() {
            Detail::Caller => "caller",
            Detail::Operator => "operator",
        };
        let (code, http, exit) = (r.code().as_str(), r.code().http(), r.exit().number());
        page.push_str(&format!(
            "| `{r}` | {code} | {http} | {exit} | {} | {detail} | {} | {} |\n",
            r.text(),
            r.retry(),
            r.next()
        ));
    }
    page.push_str("\nA no of gate 2 (an OK reply in gRPC):\n\n| reason | exit | text | what to do |\n|---|---|---|---|\n");
    for r in DeniedReason::ALL {
        let exit = r.exit().number();
        page.push_str(&format!(
            "| `{r}` | {exit} | {} | {} |\n",
            r.text(),
            r.next()
        ));
    }
    page.push_str("\nExit codes of the command line:\n\n| exit | |\n|---|---|\n");
    for exit in Exit::ALL {
        page.push_str(&format!("| {} | {} |\n", exit.number(), exit.text()));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/model/REASONS.md");
    if std::env::var_os("DIPYLON_BLESS").is_some() {
        std::fs::write(&path, &page).expect("written");
    }
    let written = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(page, written, "REASONS.md: DIPYLON_BLESS=1 writes it anew");
}
