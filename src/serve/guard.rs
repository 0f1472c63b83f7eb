//! Who may call what, and in which class of rates, as data. A method without a row is refused.

use tonic::metadata::MetadataMap;

use crate::broker::CallContext;
use crate::broker::CallerRole::{self, Agent, Approver, Auditor, Operator, Validator};
use crate::model::Secret;
use crate::proto::BOOTSTRAP_CODE;
use crate::rate_limit::Class::{self, General, Reserved};
use crate::rate_limit::ConcurrencyPermit;

/// One row for each method of ours, as it stands in the path of a call: who may call it, and its class of rates. Ending and
/// validating are reserved.
const TABLE: &[(&str, &[CallerRole], Class)] = &[
    ("dipylon.v1.TaskService/OpenTask", &[Agent], General),
    ("dipylon.v1.TaskService/RequestToken", &[Agent], General),
    ("dipylon.v1.TaskService/GetAccessRequest", &[Agent], General),
    (
        "dipylon.v1.TaskService/WatchAccessRequest",
        &[Agent],
        General,
    ),
    (
        "dipylon.v1.TaskService/CancelAccessRequest",
        &[Agent],
        Reserved,
    ),
    ("dipylon.v1.TaskService/KeepAlive", &[Agent], Reserved),
    ("dipylon.v1.TaskService/CompleteTask", &[Agent], Reserved),
    ("dipylon.v1.TokenService/Introspect", &[Validator], Reserved),
    (
        "dipylon.v1.TokenService/ConsumeToken",
        &[Validator],
        Reserved,
    ),
    ("dipylon.v1.TokenService/RevokeToken", &[Operator], Reserved),
    (
        "dipylon.v1.TokenService/WatchRevocations",
        &[Validator],
        Reserved,
    ),
    (
        "dipylon.v1.ApprovalService/ListAccessRequests",
        &[Approver, Operator],
        General,
    ),
    (
        "dipylon.v1.ApprovalService/WatchAccessRequests",
        &[Approver, Operator],
        General,
    ),
    (
        "dipylon.v1.ApprovalService/GetCard",
        &[Approver, Operator],
        General,
    ),
    ("dipylon.v1.ApprovalService/BeginVote", &[Approver], General),
    ("dipylon.v1.ApprovalService/CastVote", &[Approver], General),
    (
        "dipylon.v1.ApprovalService/InviteApprover",
        &[Operator],
        General,
    ),
    (
        "dipylon.v1.ApprovalService/ListApprovers",
        &[Approver, Operator, Auditor],
        General,
    ),
    (
        "dipylon.v1.ApprovalService/RevokeApproverKeys",
        &[Operator],
        Reserved,
    ),
    (
        "dipylon.v1.GovernanceService/ApplyPolicyBundle",
        &[Operator],
        General,
    ),
    (
        "dipylon.v1.GovernanceService/SuspendAgent",
        &[Operator],
        Reserved,
    ),
    (
        "dipylon.v1.GovernanceService/ResumeAgent",
        &[Operator],
        General,
    ),
    (
        "dipylon.v1.GovernanceService/EndTask",
        &[Operator],
        Reserved,
    ),
    (
        "dipylon.v1.GovernanceService/Explain",
        &[Operator, Auditor],
        General,
    ),
    (
        "dipylon.v1.GovernanceService/ListAgents",
        &[Operator, Auditor],
        General,
    ),
    (
        "dipylon.v1.GovernanceService/GetAgent",
        &[Operator, Auditor],
        General,
    ),
    ("dipylon.v1.GovernanceService/Freeze", &[Operator], Reserved),
    (
        "dipylon.v1.GovernanceService/Unfreeze",
        &[Operator],
        General,
    ),
    (
        "dipylon.v1.GovernanceService/ListFreezes",
        &[Operator, Auditor],
        General,
    ),
    (
        "dipylon.v1.GovernanceService/ListTasks",
        &[Operator, Auditor],
        General,
    ),
    (
        "dipylon.v1.GovernanceService/ListRules",
        &[Operator, Auditor, Approver],
        General,
    ),
    (
        "dipylon.v1.GovernanceService/ListApproverFigures",
        &[Operator, Auditor],
        General,
    ),
    (
        "dipylon.v1.GovernanceService/ListTokens",
        &[Operator, Auditor],
        General,
    ),
    (
        "dipylon.v1.GovernanceService/GetTimeline",
        &[Operator, Auditor, Approver],
        General,
    ),
    (
        "dipylon.v1.GovernanceService/SearchJournal",
        &[Operator, Auditor],
        General,
    ),
];

/// The row of a method.
pub fn row(method: &str) -> Option<(&'static str, &'static [CallerRole])> {
    let row = TABLE.iter().find(|(name, _, _)| *name == method);
    row.map(|(name, kinds, _)| (*name, *kinds))
}

/// The class of a method's rates.
pub fn class(method: &str) -> Class {
    let row = TABLE.iter().find(|(name, _, _)| *name == method);
    row.map_or(General, |(_, _, class)| *class)
}

/// Longest credential in metadata, in bytes: no honest one comes near it.
const CREDENTIAL_BYTES_MAX: usize = 12 * 1024;

/// What a call shows. A credential that stands twice, is not text, or is too long counts as unreadable: the call then shows
/// a credential that can never hold, and is refused like any other that does not.
pub fn presented(method: &'static str, metadata: &MetadataMap) -> CallContext {
    let allowed_roles = row(method).map_or(&[][..], |(_, kinds)| kinds);
    let bearer = one(metadata, "authorization").map(|value| {
        let token = value
            .expose_secret()
            .strip_prefix("Bearer ")
            .unwrap_or_default();
        Secret::new(token.to_owned())
    });
    CallContext {
        method,
        allowed_roles,
        proof: one(metadata, "dpop"),
        bearer,
        session: None,
        permit: ConcurrencyPermit::unlimited(class(method)),
    }
}

/// The one-time code of a first operator, where a call carries one.
pub fn bootstrap_code(metadata: &MetadataMap) -> Option<Secret> {
    one(metadata, BOOTSTRAP_CODE)
}

fn one(metadata: &MetadataMap, name: &str) -> Option<Secret> {
    let mut values = metadata.get_all(name).iter();
    let first = values.next()?;
    let unreadable = || Secret::new(String::new());
    let text = first
        .to_str()
        .ok()
        .filter(|text| values.next().is_none() && text.len() <= CREDENTIAL_BYTES_MAX);
    Some(text.map_or_else(unreadable, |text| Secret::new(text.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_has_one_row_and_every_row_a_method() {
        let methods = crate::proto::methods();
        for method in methods {
            assert_eq!(
                TABLE.iter().filter(|(name, _, _)| name == method).count(),
                1,
                "{method}"
            );
        }
        assert_eq!(TABLE.len(), methods.len());
        assert!(TABLE.iter().all(|(_, kinds, _)| !kinds.is_empty()));
    }

    #[test]
    fn ending_and_validating_are_reserved() {
        for (name, _, class) in TABLE {
            let verb = name.rsplit('/').next().expect("a name");
            // A missed heartbeat ends a task: no flood may bring it about.
            let ends = [
                "Complete",
                "End",
                "Cancel",
                "Suspend",
                "Freeze",
                "Revoke",
                "KeepAlive",
            ]
            .iter()
            .any(|word| verb.starts_with(word));
            let validates = name.contains(".TokenService/");
            assert_eq!(*class == Reserved, ends || validates, "{name}");
        }
        assert_eq!(class("dipylon.v1.TaskService/Nothing"), General);
    }

    #[test]
    fn a_credential_that_stands_twice_is_none_that_holds() {
        let mut metadata = MetadataMap::new();
        metadata.append("dpop", "a.b.c".parse().expect("ascii"));
        assert_eq!(
            presented("dipylon.v1.TaskService/OpenTask", &metadata)
                .proof
                .expect("one")
                .expose_secret(),
            "a.b.c"
        );
        metadata.append("dpop", "d.e.f".parse().expect("ascii"));
        assert_eq!(
            presented("dipylon.v1.TaskService/OpenTask", &metadata)
                .proof
                .expect("unreadable")
                .expose_secret(),
            ""
        );
        metadata.insert("authorization", "Basic abc".parse().expect("ascii"));
        assert_eq!(
            presented("x", &metadata)
                .bearer
                .expect("unreadable")
                .expose_secret(),
            ""
        );
        assert!(presented("x", &metadata).allowed_roles.is_empty());
    }
}
