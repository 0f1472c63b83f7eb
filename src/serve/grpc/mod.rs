//! gRPC services: parse the request, call the broker, convert the reply. One file for each service.

mod approval;
mod convert;
mod explanation;
mod governance;
mod page;
mod policy_bundles;
mod service;
mod streams;
mod task;
mod token;

pub(super) use service::GrpcService;
