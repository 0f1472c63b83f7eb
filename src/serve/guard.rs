//! Who may call what, as data. A method without a row is refused.

use tonic::metadata::MetadataMap;

use crate::broker::CallerKind::{self, Agent, Approver, Auditor, Operator, Validator};
use crate::broker::Presented;
use crate::model::Secret;
use crate::proto::BOOTSTRAP_CODE;

/// One row for each method of ours, as it stands in the path of a call.
pub const TABLE: &[(&str, &[CallerKind])] = &[
    ("dipylon.v1.TaskService/OpenTask", &[Agent]),
    ("dipylon.v1.TaskService/RequestToken", &[Agent]),
    ("dipylon.v1.TaskService/GetAccessRequest", &[Agent]),
    ("dipylon.v1.TaskService/CancelAccessRequest", &[Agent]),
    ("dipylon.v1.TaskService/KeepAlive", &[Agent]),
    ("dipylon.v1.TaskService/CompleteTask", &[Agent]),
    ("dipylon.v1.TokenService/Introspect", &[Validator]),
    ("dipylon.v1.TokenService/ConsumeToken", &[Validator]),
    ("dipylon.v1.TokenService/RevokeToken", &[Operator]),
    ("dipylon.v1.TokenService/WatchRevocations", &[Validator]),
    (
        "dipylon.v1.ApprovalService/ListAccessRequests",
        &[Approver, Operator],
    ),
    ("dipylon.v1.ApprovalService/GetCard", &[Approver, Operator]),
    ("dipylon.v1.ApprovalService/BeginVote", &[Approver]),
    ("dipylon.v1.ApprovalService/CastVote", &[Approver]),
    (
        "dipylon.v1.GovernanceService/ApplyPolicyBundle",
        &[Operator],
    ),
    ("dipylon.v1.GovernanceService/SuspendAgent", &[Operator]),
    ("dipylon.v1.GovernanceService/ResumeAgent", &[Operator]),
    (
        "dipylon.v1.GovernanceService/ListAgents",
        &[Operator, Auditor],
    ),
    (
        "dipylon.v1.GovernanceService/GetAgent",
        &[Operator, Auditor],
    ),
    ("dipylon.v1.GovernanceService/Freeze", &[Operator]),
    ("dipylon.v1.GovernanceService/Unfreeze", &[Operator]),
    (
        "dipylon.v1.GovernanceService/ListFreezes",
        &[Operator, Auditor],
    ),
    (
        "dipylon.v1.GovernanceService/ListTasks",
        &[Operator, Auditor],
    ),
    ("dipylon.v1.GovernanceService/EndTask", &[Operator]),
    ("dipylon.v1.GovernanceService/Explain", &[Operator, Auditor]),
];

/// The row of a method.
pub fn row(method: &str) -> Option<(&'static str, &'static [CallerKind])> {
    TABLE.iter().find(|(name, _)| *name == method).copied()
}

/// Longest credential in metadata, in bytes: no honest one comes near it.
const CREDENTIAL_BYTES_MAX: usize = 12 * 1024;

/// What a call shows. A credential that stands twice, is not text, or is too long counts as unreadable: the call then shows
/// a credential that can never hold, and is refused like any other that does not.
pub fn presented(method: &'static str, metadata: &MetadataMap) -> Presented {
    let admits = row(method).map_or(&[][..], |(_, kinds)| kinds);
    let bearer = one(metadata, "authorization").map(|value| {
        let token = value.reveal().strip_prefix("Bearer ").unwrap_or_default();
        Secret::new(token.to_owned())
    });
    Presented {
        method,
        admits,
        proof: one(metadata, "dpop"),
        bearer,
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
                TABLE.iter().filter(|(name, _)| name == method).count(),
                1,
                "{method}"
            );
        }
        assert_eq!(TABLE.len(), methods.len());
        assert!(TABLE.iter().all(|(_, kinds)| !kinds.is_empty()));
    }

    #[test]
    fn a_credential_that_stands_twice_is_none_that_holds() {
        let mut metadata = MetadataMap::new();
        metadata.append("dpop", "a.b.c".parse().expect("ascii"));
        assert_eq!(
            presented("dipylon.v1.TaskService/OpenTask", &metadata)
                .proof
                .expect("one")
                .reveal(),
            "a.b.c"
        );
        metadata.append("dpop", "d.e.f".parse().expect("ascii"));
        assert_eq!(
            presented("dipylon.v1.TaskService/OpenTask", &metadata)
                .proof
                .expect("unreadable")
                .reveal(),
            ""
        );
        metadata.insert("authorization", "Basic abc".parse().expect("ascii"));
        assert_eq!(
            presented("x", &metadata)
                .bearer
                .expect("unreadable")
                .reveal(),
            ""
        );
        assert!(presented("x", &metadata).admits.is_empty());
    }
}
