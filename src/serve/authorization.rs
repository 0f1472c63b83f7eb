//! Authorization of gRPC methods: one table with each method's name, the roles that may call it, its rate class and the
//! side that streams. Handlers, admission, timeouts and the request log read it. A method without an entry is refused.

use tonic::metadata::MetadataMap;

use crate::broker::CallContext;
use crate::broker::CallerRole::{self, Agent, Approver, Auditor, Operator, Validator};
use crate::model::Secret;
use crate::proto::BOOTSTRAP_CODE;
use crate::rate_limit::Class::{self, General, Reserved};
use crate::rate_limit::ConcurrencyPermit;
use StreamingSide::{Client, Server, Unary};

/// The side of a method that sends many messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamingSide {
    /// Neither.
    Unary,
    /// The broker: the response goes on.
    Server,
    /// The client: an upload.
    Client,
}

/// The policy of one method.
#[derive(Debug, PartialEq, Eq)]
pub struct MethodPolicy {
    /// `dipylon.v1.Service/Method`, as in the path of a call.
    pub name: &'static str,
    /// The roles that may call it; the same as its comment in the proto says.
    pub allowed_roles: &'static [CallerRole],
    /// The class of its rate limits: methods that end or validate are reserved.
    pub rate_class: Class,
    /// The side that streams.
    pub streaming: StreamingSide,
}

macro_rules! methods {
    ($($constant:ident = $name:literal, $roles:expr, $class:expr, $streaming:expr;)*) => {
        $(
            #[doc = concat!("`", $name, "`")]
            pub const $constant: &MethodPolicy = &MethodPolicy {
                name: concat!("dipylon.v1.", $name),
                allowed_roles: &$roles,
                rate_class: $class,
                streaming: $streaming,
            };
        )*
        /// Every method of every service.
        pub const METHODS: &[&MethodPolicy] = &[$($constant),*];
    };
}

methods! {
    OPEN_TASK = "TaskService/OpenTask", [Agent], General, Unary;
    GET_TASK = "TaskService/GetTask", [Agent], General, Unary;
    REQUEST_TOKEN = "TaskService/RequestToken", [Agent], General, Unary;
    LIST_RECOMMENDATIONS = "TaskService/ListRecommendations", [Agent], General, Unary;
    GET_ACCESS_REQUEST = "TaskService/GetAccessRequest", [Agent], General, Unary;
    WATCH_ACCESS_REQUEST = "TaskService/WatchAccessRequest", [Agent], General, Server;
    CANCEL_ACCESS_REQUEST = "TaskService/CancelAccessRequest", [Agent], Reserved, Unary;
    KEEP_ALIVE = "TaskService/KeepAlive", [Agent], Reserved, Unary;
    WATCH_TOKEN = "TaskService/WatchToken", [Agent], Reserved, Server;
    COMPLETE_TASK = "TaskService/CompleteTask", [Agent], Reserved, Unary;

    INTROSPECT = "TokenService/Introspect", [Validator], Reserved, Unary;
    CONSUME_TOKEN = "TokenService/ConsumeToken", [Validator], Reserved, Unary;
    REVOKE_TOKEN = "TokenService/RevokeToken", [Operator], Reserved, Unary;
    WATCH_REVOCATIONS = "TokenService/WatchRevocations", [Validator], Reserved, Server;

    LIST_ACCESS_REQUESTS = "ApprovalService/ListAccessRequests", [Approver, Operator], General, Unary;
    WATCH_ACCESS_REQUESTS = "ApprovalService/WatchAccessRequests", [Approver, Operator], General, Server;
    GET_CARD = "ApprovalService/GetCard", [Approver, Operator], General, Unary;
    BEGIN_VOTE = "ApprovalService/BeginVote", [Approver, Operator], General, Unary;
    CAST_VOTE = "ApprovalService/CastVote", [Approver, Operator], General, Unary;
    INVITE_APPROVER = "ApprovalService/InviteApprover", [Operator], General, Unary;
    CONFIRM_PASSKEY = "ApprovalService/ConfirmPasskey", [Approver, Operator], General, Unary;
    LIST_APPROVERS = "ApprovalService/ListApprovers", [Approver, Operator, Auditor], General, Unary;
    REVOKE_APPROVER_KEYS = "ApprovalService/RevokeApproverKeys", [Operator], Reserved, Unary;

    APPLY_POLICY_BUNDLE = "GovernanceService/ApplyPolicyBundle", [Operator], General, Client;
    PLAN_POLICY_BUNDLE = "GovernanceService/PlanPolicyBundle", [Operator], General, Client;
    GET_POLICY_PLAN = "GovernanceService/GetPolicyPlan", [Operator, Auditor], General, Server;
    SUSPEND_AGENT = "GovernanceService/SuspendAgent", [Operator], Reserved, Unary;
    RESUME_AGENT = "GovernanceService/ResumeAgent", [Operator], General, Unary;
    END_TASK = "GovernanceService/EndTask", [Operator], Reserved, Unary;
    EXPLAIN = "GovernanceService/Explain", [Operator, Auditor], General, Unary;
    GET_TOKEN_RECEIPT = "GovernanceService/GetTokenReceipt", [Operator, Auditor], General, Server;
    LIST_AGENTS = "GovernanceService/ListAgents", [Operator, Auditor], General, Unary;
    GET_AGENT = "GovernanceService/GetAgent", [Operator, Auditor], General, Unary;
    WITHDRAW_POLICY_PROPOSAL = "GovernanceService/WithdrawPolicyProposal", [Operator], General, Unary;
    LIST_POLICY_BUNDLES = "GovernanceService/ListPolicyBundles", [Operator, Auditor], General, Unary;
    GET_POLICY_BUNDLE = "GovernanceService/GetPolicyBundle", [Operator, Auditor], General, Server;
    FREEZE = "GovernanceService/Freeze", [Operator], Reserved, Unary;
    UNFREEZE = "GovernanceService/Unfreeze", [Operator], General, Unary;
    LIST_FREEZES = "GovernanceService/ListFreezes", [Operator, Auditor], General, Unary;
    SET_FACT = "GovernanceService/SetFact", [Operator], Reserved, Unary;
    LIST_FACTS = "GovernanceService/ListFacts", [Operator, Auditor], General, Unary;
    LIST_TASKS = "GovernanceService/ListTasks", [Operator, Auditor], General, Unary;
    LIST_RULES = "GovernanceService/ListRules", [Operator, Auditor, Approver], General, Unary;
    LIST_APPROVER_STATS = "GovernanceService/ListApproverStats", [Operator, Auditor], General, Unary;
    LIST_TOKENS = "GovernanceService/ListTokens", [Operator, Auditor], General, Unary;
    GET_TIMELINE = "GovernanceService/GetTimeline", [Operator, Auditor, Approver], General, Unary;
    SEARCH_JOURNAL = "GovernanceService/SearchJournal", [Operator, Auditor], General, Unary;
}

/// The policy of a method by its name, `dipylon.v1.Service/Method`.
pub fn method_policy(name: &str) -> Option<&'static MethodPolicy> {
    METHODS.iter().find(|method| method.name == name).copied()
}

/// Longest credential in metadata, in bytes: no honest one comes near it.
const CREDENTIAL_BYTES_MAX: usize = 12 * 1024;

/// The credentials of a call. A credential that appears twice, is not text, or is too long counts as unreadable: the call
/// then carries a credential that can never verify, and is refused like any other that does not.
pub fn call_context(method: &MethodPolicy, metadata: &MetadataMap) -> CallContext {
    let bearer = single_header(metadata, "authorization").map(|value| {
        let token = value
            .expose_secret()
            .strip_prefix("Bearer ")
            .unwrap_or_default();
        Secret::new(token.to_owned())
    });
    CallContext {
        method: method.name,
        allowed_roles: method.allowed_roles,
        proof: single_header(metadata, "dpop"),
        bearer,
        session: None,
        permit: ConcurrencyPermit::unlimited(method.rate_class),
    }
}

/// The one-time bootstrap code of the first operator, if the call carries one.
pub fn bootstrap_code(metadata: &MetadataMap) -> Option<Secret> {
    single_header(metadata, BOOTSTRAP_CODE)
}

fn single_header(metadata: &MetadataMap, name: &str) -> Option<Secret> {
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
    fn table_has_every_proto_method_once() {
        let methods = crate::proto::methods();
        for method in methods {
            assert_eq!(
                METHODS.iter().filter(|row| row.name == method).count(),
                1,
                "{method}"
            );
        }
        assert_eq!(METHODS.len(), methods.len());
        assert!(METHODS.iter().all(|row| !row.allowed_roles.is_empty()));
    }

    #[test]
    fn ending_and_validating_methods_are_reserved() {
        for MethodPolicy {
            name, rate_class, ..
        } in METHODS
        {
            let verb = name.rsplit('/').next().expect("a name");
            // A missed heartbeat ends a task, and a holder that does not hear of an end goes on using its token: no flood may
            // bring either about.
            let ends = [
                "Complete",
                "End",
                "Cancel",
                "Suspend",
                "Freeze",
                // Back to the safe value.
                "SetFact",
                "Revoke",
                "KeepAlive",
                "WatchToken",
            ]
            .iter()
            .any(|word| verb.starts_with(word));
            let validates = name.contains(".TokenService/");
            assert_eq!(*rate_class == Reserved, ends || validates, "{name}");
        }
        assert_eq!(method_policy("dipylon.v1.TaskService/Nothing"), None);
    }

    #[test]
    fn duplicate_credential_header_is_rejected() {
        let mut metadata = MetadataMap::new();
        metadata.append("dpop", "a.b.c".parse().expect("ascii"));
        let proof = |metadata: &MetadataMap| {
            let proof = call_context(OPEN_TASK, metadata).proof;
            proof.expect("a proof").expose_secret().to_owned()
        };
        assert_eq!(proof(&metadata), "a.b.c");
        metadata.append("dpop", "d.e.f".parse().expect("ascii"));
        assert_eq!(proof(&metadata), "", "unreadable");
        metadata.insert("authorization", "Basic abc".parse().expect("ascii"));
        let call = call_context(OPEN_TASK, &metadata);
        assert_eq!(call.bearer.expect("unreadable").expose_secret(), "");
        assert_eq!(call.allowed_roles, OPEN_TASK.allowed_roles);
    }
}
