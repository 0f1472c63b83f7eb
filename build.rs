//! Compiles `proto/` without protoc: Rust code for both sides of every service, and the descriptor for reflection, the
//! strict decoder and the tests that walk every method.

use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

const FILES: [&str; 5] = ["types", "task", "token", "approval", "governance"];

/// Messages that carry a token, evidence, a signature or a parameter's value: `src/proto/debug.rs` prints them.
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
        .codec_path("crate::proto::strict::StrictCodec")
        .compile_fds_with_config(compiler.file_descriptor_set(), config)?;
    // Another project's words: not in the descriptor of ours, and read as prost reads.
    let workload_api = protox::compile(["spiffe/workloadapi.proto"], ["proto"])?;
    let mut config = tonic_prost_build::Config::new();
    config.skip_debug([".JWTSVID"]);
    tonic_prost_build::configure().compile_fds_with_config(workload_api, config)?;
    Ok(())
}
