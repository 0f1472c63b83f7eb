//! Compiles `proto/` without protoc: messages and clients for this crate, server traits for its tests, and the descriptor
//! for the strict decoder, reflection and the tests that visit every method.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

const FILES: [&str; 5] = ["types", "task", "token", "approval", "governance"];

/// Messages that carry a token, evidence, a signature or a parameter's value: `src/proto/redact.rs` prints them.
const REDACTED: [&str; 12] = [
    ".dipylon.v1.Evidence",
    ".dipylon.v1.Evidence.kind",
    ".dipylon.v1.Value",
    ".dipylon.v1.Value.kind",
    ".dipylon.v1.IssuedToken",
    ".dipylon.v1.Opening",
    ".dipylon.v1.IntrospectRequest",
    ".dipylon.v1.ConsumeTokenRequest",
    ".dipylon.v1.BeginVoteResponse",
    ".dipylon.v1.CastVoteRequest",
    ".dipylon.v1.PasskeyAssertion",
    ".dipylon.v1.InviteApproverResponse",
];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).include_source_info(true);
    for file in FILES {
        compiler.open_file(format!("dipylon/v1/{file}.proto"))?;
    }
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("OUT_DIR is not set")?);
    fs::write(
        out.join("descriptor.bin"),
        compiler.encode_file_descriptor_set(),
    )?;
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names().skip_debug(REDACTED);
    tonic_prost_build::configure()
        .build_server(false)
        .codec_path("crate::proto::strict::StrictCodec")
        .compile_fds_with_config(compiler.file_descriptor_set(), config)?;
    // Another project's file: not in our descriptor, and decoded as prost decodes.
    let workload_api = protox::compile(["spiffe/workloadapi.proto"], ["proto"])?;
    let mut config = tonic_prost_build::Config::new();
    config.skip_debug([".JWTSVID"]);
    tonic_prost_build::configure()
        .build_server(false)
        .compile_fds_with_config(workload_api.clone(), config)?;
    // Server traits, for tests: the broker generates its own.
    let servers = out.join("servers");
    fs::create_dir_all(&servers)?;
    tonic_prost_build::configure()
        .build_client(false)
        .codec_path("crate::proto::strict::StrictCodec")
        .extern_path(".dipylon.v1", "crate::proto::v1")
        .out_dir(&servers)
        .compile_fds(compiler.file_descriptor_set())?;
    tonic_prost_build::configure()
        .build_client(false)
        .extern_path(".JWTSVIDRequest", "crate::proto::spiffe::JwtsvidRequest")
        .extern_path(".JWTSVIDResponse", "crate::proto::spiffe::JwtsvidResponse")
        .extern_path(".JWTSVID", "crate::proto::spiffe::Jwtsvid")
        .out_dir(&servers)
        .compile_fds(workload_api)?;
    Ok(())
}
