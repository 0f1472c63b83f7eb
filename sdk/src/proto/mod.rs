//! Protobuf messages of `proto/dipylon/v1`, with strict decoding and conversions to the model's types.
//!
//! In: bytes and generated messages. Out: messages without unknown fields ([`strict`]), types of the model ([`convert`]) and
//! cards ([`card`]).
//! Trusts: the descriptor compiled into this binary.
//! Refuses: unknown fields in a request; values that the model's types refuse.
//! Never: decides anything, or prints a token, evidence, a signature or a parameter's value (`debug`).

use std::sync::OnceLock;

use prost::Message as _;
use prost_types::FileDescriptorSet;

pub mod card;
pub mod convert;
mod debug;
pub mod strict;
#[cfg(test)]
mod strict_tests;

/// Package `dipylon.v1`.
#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod v1 {
    tonic::include_proto!("dipylon.v1");
}

/// The SPIFFE Workload API, as far as JWT-SVIDs go: where workloads get their evidence.
#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod spiffe {
    tonic::include_proto!("_");
}

/// Server traits, for fake brokers and Workload APIs in tests.
#[cfg(any(test, feature = "test-support"))]
#[allow(missing_docs, clippy::all, reason = "generated")]
pub mod servers {
    /// Package `dipylon.v1`.
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/servers/dipylon.v1.rs"));
    }

    /// The SPIFFE Workload API.
    pub mod spiffe {
        include!(concat!(env!("OUT_DIR"), "/servers/_.rs"));
    }
}

/// The compiled `FileDescriptorSet`, imports and comments included: what reflection serves.
pub const DESCRIPTOR: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptor.bin"));

/// The package of every message and service here.
pub const PACKAGE: &str = "dipylon.v1";

/// `ErrorInfo.domain` of every refusal.
pub const ERROR_DOMAIN: &str = "dipylon";

/// Metadata that carries the one-time code of a first operator, beside the proof, on ApplyPolicyBundle alone.
pub const BOOTSTRAP_CODE: &str = "dipylon-bootstrap-code";

/// The name of a gRPC code, in metrics, logs and errors.
pub const fn code_name(code: tonic::Code) -> &'static str {
    match code {
        tonic::Code::Ok => "OK",
        tonic::Code::Cancelled => "CANCELLED",
        tonic::Code::Unknown => "UNKNOWN",
        tonic::Code::InvalidArgument => "INVALID_ARGUMENT",
        tonic::Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        tonic::Code::NotFound => "NOT_FOUND",
        tonic::Code::AlreadyExists => "ALREADY_EXISTS",
        tonic::Code::PermissionDenied => "PERMISSION_DENIED",
        tonic::Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        tonic::Code::FailedPrecondition => "FAILED_PRECONDITION",
        tonic::Code::Aborted => "ABORTED",
        tonic::Code::OutOfRange => "OUT_OF_RANGE",
        tonic::Code::Unimplemented => "UNIMPLEMENTED",
        tonic::Code::Internal => "INTERNAL",
        tonic::Code::Unavailable => "UNAVAILABLE",
        tonic::Code::DataLoss => "DATA_LOSS",
        tonic::Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

/// Every method as `package.Service/Method`, as in the path of a call, in the order of the files.
pub fn methods() -> &'static [String] {
    static METHODS: OnceLock<Vec<String>> = OnceLock::new();
    METHODS.get_or_init(|| {
        let files = descriptor().into_iter().flat_map(|set| set.file);
        files
            .flat_map(|file| {
                let package = file.package().to_owned();
                file.service.into_iter().flat_map(move |service| {
                    let prefix = format!("{package}.{}", service.name());
                    service
                        .method
                        .into_iter()
                        .map(move |method| format!("{prefix}/{}", method.name()))
                })
            })
            .collect()
    })
}

/// The parsed descriptor. `None` only if the build wrote something else; decoders then refuse every request.
fn descriptor() -> Option<FileDescriptorSet> {
    FileDescriptorSet::decode(DESCRIPTOR).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_of_every_service_is_listed() {
        let methods = methods();
        assert_eq!(methods.len(), 47);
        assert!(
            methods.iter().all(|m| m.starts_with("dipylon.v1.")),
            "{methods:?}"
        );
        for name in [
            "dipylon.v1.TaskService/OpenTask",
            "dipylon.v1.TokenService/WatchRevocations",
        ] {
            assert!(methods.iter().any(|m| m == name), "{name}");
        }
    }
}
