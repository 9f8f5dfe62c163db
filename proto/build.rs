//! Generates the types and services of `proto/`, with a Debug that hides secrets.
//!
//! No protoc: protox compiles the descriptors. Messages that hold a field marked `csi_secret` get no derived
//! Debug but one written here from the descriptor, so that a new secret field of a later interface is hidden
//! without anybody listing it.

use std::error::Error;
use std::fmt::Write as _;
use std::path::PathBuf;

use protox::prost_reflect::{DescriptorPool, MessageDescriptor, Value};

const FILES: [&str; 4] = [
    "csi.proto",
    "csi_node.proto",
    "csi_snapshots.proto",
    "pluginregistration.proto",
];
/// The option's full name in csi.proto.
const SECRET_OPTION: &str = "csi.v1.csi_secret";

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler
        .include_imports(true)
        .include_source_info(true)
        .open_files(FILES)?;
    let pool = compiler.descriptor_pool();

    let with_secrets: Vec<MessageDescriptor> = pool
        .all_messages()
        .filter(|message| !secret_fields(&pool, message).is_empty())
        .collect();
    if with_secrets.is_empty() {
        return Err(format!("no field carries {SECRET_OPTION}: secrets would be printed").into());
    }

    tonic_prost_build::configure()
        .skip_debug(with_secrets.iter().map(|m| format!(".{}", m.full_name())))
        // A service method this plugin does not offer answers UNIMPLEMENTED by itself.
        .generate_default_stubs(true)
        .compile_fds(compiler.file_descriptor_set())?;

    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("debug.rs"), debug_impls(&pool, &with_secrets)?)?;
    std::fs::write(
        out.join("secret_messages.rs"),
        secret_table(&pool, &with_secrets)?,
    )?;
    Ok(())
}

/// Names of the fields marked `csi_secret`.
fn secret_fields(pool: &DescriptorPool, message: &MessageDescriptor) -> Vec<String> {
    let Some(option) = pool.get_extension_by_name(SECRET_OPTION) else {
        return Vec::new();
    };
    message
        .fields()
        .filter(|field| *field.options().get_extension(&option) == Value::Bool(true))
        .map(|field| field.name().to_owned())
        .collect()
}

/// One Debug implementation per message; a secret prints `***`, volume contexts hide pod tokens.
fn debug_impls(pool: &DescriptorPool, messages: &[MessageDescriptor]) -> Result<String, Box<dyn Error>> {
    let mut code = String::new();
    for message in messages {
        let name = rust_name(message)?;
        let secrets = secret_fields(pool, message);
        writeln!(code, "impl core::fmt::Debug for {name} {{")?;
        writeln!(
            code,
            "    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {{"
        )?;
        writeln!(code, "        f.debug_struct(\"{name}\")")?;
        for field in message.fields() {
            let field = field.name();
            if secrets.iter().any(|s| s == field) {
                writeln!(code, "            .field(\"{field}\", &crate::debug::Hidden)")?;
            } else if field == "volume_context" {
                writeln!(
                    code,
                    "            .field(\"{field}\", &crate::debug::Context(&self.{field}))"
                )?;
            } else {
                writeln!(code, "            .field(\"{field}\", &self.{field})")?;
            }
        }
        writeln!(code, "            .finish()\n    }}\n}}\n")?;
    }
    Ok(code)
}

/// A macro that calls `$check!(Type, [secret fields])` for every message, for the test that formats each.
fn secret_table(pool: &DescriptorPool, messages: &[MessageDescriptor]) -> Result<String, Box<dyn Error>> {
    let mut code = String::from("macro_rules! for_each_secret_message {\n    ($check:ident) => {\n");
    for message in messages {
        let fields = secret_fields(pool, message).join(", ");
        writeln!(code, "        $check!({}, [{fields}]);", rust_name(message)?)?;
    }
    code.push_str("    };\n}\n");
    Ok(code)
}

/// Name of the generated struct, which lives in the module of its package.
fn rust_name(message: &MessageDescriptor) -> Result<String, Box<dyn Error>> {
    if message.parent_message().is_some() || message.package_name() != "csi.v1" {
        return Err(format!(
            "{}: secrets in nested messages or other packages need more of build.rs",
            message.full_name()
        )
        .into());
    }
    Ok(message.name().to_owned())
}
