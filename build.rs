//! Compiles the services of `proto/` without protoc: the server traits. Messages and clients are the SDK's.

use std::error::Error;

const FILES: [&str; 4] = ["task", "token", "approval", "governance"];

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo:rerun-if-changed=proto");
    let files = FILES.map(|file| format!("dipylon/v1/{file}.proto"));
    tonic_prost_build::configure()
        .build_client(false)
        .codec_path("::dipylon_sdk::proto::strict::StrictCodec")
        .extern_path(".dipylon.v1", "::dipylon_sdk::proto::v1")
        .compile_fds(protox::compile(files, ["proto"])?)?;
    Ok(())
}
