//! `vsc-blob-csi`: Azure Blob containers as file systems, for Kubernetes (node, controller) and by hand
//! (mount, doctor).

use std::process::ExitCode;

use clap::Parser as _;
use vsc_blob_csi::allocator;
use vsc_blob_csi::commands::Cli;

fn main() -> ExitCode {
    allocator::bound();
    let cli = Cli::parse();
    match cli.run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("vsc-blob-csi: {error:#}");
            ExitCode::FAILURE
        }
    }
}
