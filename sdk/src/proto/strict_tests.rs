use proptest::prelude::*;
use prost::Message as _;
use tonic::Code;
use tonic_types::StatusExt as _;

use super::strict::{FIELDS_MAX, StrictDecodeError, read};
use super::v1;

/// A varint field.
fn varint(number: u32, value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    prost::encoding::uint64::encode(number, &value, &mut out);
    out
}

/// A length-delimited field.
fn len(number: u32, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    prost::encoding::bytes::encode(number, &bytes.to_vec(), &mut out);
    out
}

fn open_task() -> Vec<u8> {
    [
        len(1, &len(1, b"svid")),
        len(2, b"why"),
        len(3, &varint(1, 60)),
        len(4, b"r1"),
    ]
    .concat()
}

fn refused<U: prost::Message + prost::Name + Default + std::fmt::Debug>(
    bytes: &[u8],
) -> StrictDecodeError {
    match read::<U>(bytes) {
        Err(error) => error,
        Ok(message) => panic!("was read: {message:?}"),
    }
}

/// A request whose action has this value as its one parameter.
fn with_value(value: &[u8]) -> Vec<u8> {
    let parameter = [len(1, b"p"), len(2, value)].concat();
    [len(1, b"task"), len(2, &len(3, &parameter))].concat()
}

#[test]
fn known_fields_are_accepted() {
    let message: v1::OpenTaskRequest = read(&open_task()).expect("read");
    assert_eq!(message.purpose, "why");
    assert_eq!(message.max_duration.map(|d| d.seconds), Some(60));
    assert!(read::<v1::ListAccessRequestsRequest>(&[]).is_ok());
    let record = len(
        5,
        &len(1, &[len(1, b"m"), len(2, &varint(3, u64::MAX))].concat()),
    );
    assert!(read::<v1::RequestTokenRequest>(&with_value(&record)).is_ok());
}

#[test]
fn top_level_errors() {
    let with = |extra: Vec<u8>| [open_task(), extra].concat();
    let cases: [(&str, Vec<u8>, &str); 14] = [
        (
            "unknown number",
            with(len(9, b"x")),
            "message: field 9 is unknown",
        ),
        ("unknown varint", with(varint(15, 1)), "field 15 is unknown"),
        (
            "singular twice",
            with(len(4, b"r2")),
            "message at idempotency_key: field 4, or its oneof, stands twice",
        ),
        (
            "message twice",
            with(len(1, &len(1, b"other"))),
            "stands twice",
        ),
        (
            "wrong wire type",
            varint(4, 1),
            "field 4 is of another wire type",
        ),
        (
            "group start",
            vec![1 << 3 | 3, 1 << 3 | 4],
            "another wire type",
        ),
        ("group end", vec![1 << 3 | 4], "another wire type"),
        ("fixed", vec![4 << 3 | 5, 0, 0, 0, 0], "another wire type"),
        ("wire type 7", vec![1 << 3 | 7], "broken tag"),
        ("number 0", vec![2, 0], "broken tag"),
        (
            "tag above 32 bits",
            vec![0xff, 0xff, 0xff, 0xff, 0x7f],
            "broken tag",
        ),
        ("endless varint", vec![0xff; 11], "broken tag"),
        ("cut", vec![2 << 3 | 2, 9, b'x'], "field 2 is cut short"),
        (
            "not UTF-8",
            len(2, &[0xff]),
            "message at purpose: field 2 is not UTF-8",
        ),
    ];
    for (what, bytes, text) in cases {
        let error = refused::<v1::OpenTaskRequest>(&bytes).to_string();
        assert!(error.contains(text), "{what}: {error}");
    }
}

#[test]
fn nested_errors_have_a_path() {
    let text = len(1, b"v");
    let cases: [(&str, Vec<u8>, &str); 6] = [
        (
            "unknown in value",
            varint(8, 1),
            "message at action.parameters.value: field 8 is unknown",
        ),
        (
            "both of a oneof",
            [text.clone(), varint(2, 1)].concat(),
            "action.parameters.value.bool_value",
        ),
        (
            "one of a oneof twice",
            [text.clone(), text.clone()].concat(),
            "stands twice",
        ),
        (
            "unknown in set",
            len(4, &[len(1, &text), len(2, b"")].concat()),
            "action.parameters.value.set_value: field 2",
        ),
        (
            "in a record's member",
            len(5, &len(1, &len(3, b""))),
            "value.record_value.members: field 3 is unknown",
        ),
        (
            "a bool that is 2",
            varint(2, 2),
            "action.parameters.value.bool_value: field 2 is out of range",
        ),
    ];
    for (what, value, text) in cases {
        let error = refused::<v1::RequestTokenRequest>(&with_value(&value)).to_string();
        assert!(error.contains(text), "{what}: {error}");
    }
    let duration = len(3, &[varint(1, 60), varint(3, 1)].concat());
    assert!(
        refused::<v1::RequestTokenRequest>(&duration)
            .to_string()
            .contains("ttl: field 3 is unknown")
    );
    let nanos = len(3, &varint(2, 1 << 32));
    assert!(
        refused::<v1::RequestTokenRequest>(&nanos)
            .to_string()
            .contains("ttl.nanos: field 2 is out of range")
    );
}

#[test]
fn depth_and_field_count_are_bounded() {
    let nested = |sets: usize| (0..sets).fold(len(1, b"v"), |inner, _| len(4, &len(1, &inner)));
    // The request, its action, the parameter and the value are four; each set and its element two more.
    assert!(read::<v1::RequestTokenRequest>(&with_value(&nested(6))).is_ok());
    assert!(
        refused::<v1::RequestTokenRequest>(&with_value(&nested(7)))
            .to_string()
            .contains("nests deeper than 16")
    );
    let seventeen = (0..6).fold(len(4, b""), |inner, _| len(4, &len(1, &inner)));
    assert!(
        refused::<v1::RequestTokenRequest>(&with_value(&seventeen))
            .to_string()
            .contains("nests deeper than 16")
    );
    let deepest = (0..3).fold(len(1, b"v"), |inner, _| {
        len(5, &len(1, &[len(1, b"m"), len(2, &inner)].concat()))
    });
    assert!(
        read::<v1::RequestTokenRequest>(&with_value(&deepest)).is_ok(),
        "four levels of records"
    );
    let many = |count: usize| len(2, &len(3, b"").repeat(count));
    assert!(read::<v1::RequestTokenRequest>(&many(FIELDS_MAX - 1)).is_ok());
    assert!(
        refused::<v1::RequestTokenRequest>(&many(FIELDS_MAX))
            .to_string()
            .contains("more than 10000 fields")
    );
}

#[test]
fn error_status_is_invalid_argument_without_values() {
    let bytes = [open_task(), len(9, b"s3cr3t")].concat();
    let status = refused::<v1::OpenTaskRequest>(&bytes).status();
    let info = status.get_details_error_info().expect("ErrorInfo");
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(
        (info.reason.as_str(), info.domain.as_str()),
        ("MALFORMED", "dipylon")
    );
    assert!(!format!("{status:?}").contains("s3cr3t"));
}

fn value() -> impl Strategy<Value = v1::Value> {
    use v1::value::Kind;
    let leaf = prop_oneof![
        any::<String>().prop_map(Kind::StringValue),
        any::<bool>().prop_map(Kind::BoolValue),
        any::<i64>().prop_map(Kind::IntValue),
    ];
    let kind = leaf.prop_recursive(3, 24, 4, |inner| {
        let value = inner.prop_map(|kind| v1::Value { kind: Some(kind) });
        prop_oneof![
            prop::collection::vec(value.clone(), 0..4)
                .prop_map(|elements| Kind::SetValue(v1::ValueSet { elements })),
            prop::collection::vec((any::<String>(), value), 0..4).prop_map(|members| {
                let members = members.into_iter().map(|(name, value)| v1::Parameter {
                    name,
                    value: Some(value),
                });
                Kind::RecordValue(v1::ValueRecord {
                    members: members.collect(),
                })
            }),
        ]
    });
    kind.prop_map(|kind| v1::Value { kind: Some(kind) })
}

fn duration() -> impl Strategy<Value = Option<prost_types::Duration>> {
    prop::option::of(
        (any::<i64>(), any::<i32>())
            .prop_map(|(seconds, nanos)| prost_types::Duration { seconds, nanos }),
    )
}

fn evidence() -> impl Strategy<Value = Option<v1::Evidence>> {
    prop::option::of(any::<String>().prop_map(|svid| v1::Evidence {
        kind: Some(v1::evidence::Kind::JwtSvid(svid)),
    }))
}

fn passes<U: prost::Message + prost::Name + Default + PartialEq + std::fmt::Debug>(
    message: &U,
) -> Result<(), TestCaseError> {
    prop_assert_eq!(&read::<U>(&message.encode_to_vec())?, message);
    Ok(())
}

proptest! {
    #[test]
    fn encoder_output_is_accepted(
        (texts, bytes, number) in (prop::collection::vec(any::<String>(), 6), any::<Vec<u8>>(), any::<i32>()),
        parameters in prop::collection::vec((any::<String>(), value()), 0..5),
        (ttl, wait, evidence) in (duration(), duration(), evidence()),
        after in prop::option::of((any::<u64>(), any::<u64>())),
    ) {
        let [a, b, c, d, e, f] = <[String; 6]>::try_from(texts).expect("six");
        let parameters = parameters.into_iter().map(|(name, value)| v1::Parameter { name, value: Some(value) }).collect();
        let target = Some(v1::Target { r#type: a.clone(), id: b.clone() });
        let action = Some(v1::Action { name: c.clone(), target, parameters, audience: d.clone() });
        let idempotency_key = e.clone();
        passes(&v1::RequestTokenRequest {
            task_id: f.clone(), action, ttl, reason: a.clone(), idempotency_key, wait, evidence: evidence.clone(),
            executor: b.clone(), recommendation: c.clone(),
        })?;
        passes(&v1::ListRecommendationsRequest { task_id: a.clone() })?;
        passes(&v1::OpenTaskRequest { evidence, purpose: a.clone(), max_duration: ttl, idempotency_key: b.clone(), heartbeat: wait })?;
        passes(&v1::KeepAliveRequest { task_id: a.clone() })?;
        passes(&v1::GetTaskRequest { task_id: a.clone() })?;
        passes(&v1::GetAccessRequestRequest { task_id: a.clone(), access_request_id: b.clone() })?;
        passes(&v1::CancelAccessRequestRequest { task_id: a.clone(), access_request_id: b.clone() })?;
        passes(&v1::CompleteTaskRequest { task_id: a.clone(), outcome: number })?;
        passes(&v1::IntrospectRequest { token: a.clone() })?;
        passes(&v1::ConsumeTokenRequest { token: a.clone(), use_id: b.clone() })?;
        passes(&v1::WatchRevocationsRequest { after: after.map(|(epoch, index)| v1::Position { epoch, index }) })?;
        passes(&v1::ListAccessRequestsRequest { decidable_only: number > 0, page_size: 7, page_token: d.clone() })?;
        passes(&v1::WatchAccessRequestsRequest { after: after.map(|(epoch, index)| v1::Position { epoch, index }) })?;
        let seen = after.map(|(version, _)| v1::AccessRequestCursor { version, status: number });
        passes(&v1::WatchAccessRequestRequest { task_id: a.clone(), access_request_id: b.clone(), after: seen })?;
        passes(&v1::GetCardRequest { access_request_id: a.clone() })?;
        passes(&v1::BeginVoteRequest { access_request_id: a.clone(), profile: b.clone(), verdict: number, max_ttl: ttl, max_uses: None, comment: String::new(), policy_version: String::new(), facts: a.clone() })?;
        passes(&v1::CastVoteRequest { access_request_id: a.clone(), statement: b.clone(), signature: bytes, passkey: None })?;
        passes(&v1::ApplyPolicyBundleRequest { path: a.clone(), content: b.clone(), returning: Vec::new(), base_version: d.clone() })?;
        passes(&v1::SuspendAgentRequest { agent_id: a.clone(), reason: b })?;
        passes(&v1::ResumeAgentRequest { agent_id: a.clone() })?;
        passes(&v1::RevokeTokenRequest { jti: a.clone() })?;
        passes(&v1::ListAgentsRequest { page_size: ttl.map_or(0, |t| t.seconds.unsigned_abs() as u32), page_token: a.clone() })?;
        passes(&v1::GetAgentRequest { agent_id: a.clone() })?;
        passes(&v1::FreezeRequest { scope: a.clone(), reason: c.clone() })?;
        passes(&v1::UnfreezeRequest { scope: a.clone() })?;
        passes(&v1::ListFreezesRequest { page_size: 7, page_token: a.clone() })?;
        passes(&v1::ListPolicyBundlesRequest { page_size: 7, page_token: a.clone() })?;
        passes(&v1::GetPolicyBundleRequest { version: a.clone() })?;
        passes(&v1::PlanPolicyBundleRequest { path: a.clone(), content: c.clone(), days: 7, returning: vec![d.clone()] })?;
        passes(&v1::GetPolicyPlanRequest { plan_id: d.clone() })?;
        passes(&v1::ListTasksRequest { agent_id: a.clone(), include_ended: number > 0, page_size: 7, page_token: d.clone() })?;
        passes(&v1::EndTaskRequest { task_id: a.clone() })?;
        passes(&v1::ListRulesRequest { page_size: 7, page_token: a.clone() })?;
        passes(&v1::ListApproverStatsRequest { page_size: 7, page_token: a.clone() })?;
        passes(&v1::ListTokensRequest { page_size: 7, page_token: a.clone() })?;
        passes(&v1::GetTimelineRequest { task_id: a.clone(), page_token: d.clone() })?;
        passes(&v1::SearchJournalRequest { query: a.clone(), below: after.map(|(_, index)| index) })?;
        passes(&v1::GetTokenReceiptRequest { jti: d.clone() })?;
        passes(&v1::ExplainRequest { id: a })?;
    }

    #[test]
    fn random_bytes_never_panic(noise in any::<Vec<u8>>()) {
        if read::<v1::RequestTokenRequest>(&noise).is_ok() {
            prop_assert!(v1::RequestTokenRequest::decode(noise.as_slice()).is_ok());
        }
    }
}
