//! `vsc-blob-csi`: Azure Blob containers as file systems, for Kubernetes (node, controller) and by hand
//! (mount, doctor).

use std::process::ExitCode;

use clap::Parser as _;
use vsc_blob_csi::commands::Cli;
use vsc_blob_csi::{allocator, telemetry};

fn main() -> ExitCode {
    allocator::bound();
    let cli = Cli::parse();
    telemetry::start(cli.log_format);
    match cli.run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("vsc-blob-csi: {error:#}");
            ExitCode::FAILURE
        }
    }
}
