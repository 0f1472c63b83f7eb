//! gRPC server traits, generated from `proto/` by the build script.
#![allow(missing_docs, clippy::all, reason = "generated")]

tonic::include_proto!("dipylon.v1");
