//! Actions of the `soc` example.

use dipylon_sdk::model::*;

use crate::support::{CASES, IDP};

pub fn action(
    name: &str,
    kind: &str,
    id: &str,
    audience: &str,
    parameters: &[(&str, Param)],
) -> Action {
    Action::new(
        ActionName::parse(name).expect("action"),
        Audience::parse(audience).expect("audience"),
        Target::parse(kind, id).expect("target"),
        parameters
            .iter()
            .map(|(k, v)| ((*k).to_owned(), v.clone()))
            .collect(),
    )
    .expect("action")
}

pub fn read_case() -> Action {
    action("case.read", "Case", "INC-8841", CASES, &[])
}

pub fn disable(account: &str) -> Action {
    action(
        "account.disable",
        "Account",
        account,
        IDP,
        &[("end_sessions", Param::Bool(true))],
    )
}
