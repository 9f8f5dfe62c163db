//! `${pvc.metadata.name}` and its siblings in a StorageClass.

use crate::error::{Error, Reason, Result};

/// What external-provisioner (started with `--extra-create-metadata`) says about the claim.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Claim {
    /// `${pvc.metadata.name}`
    pub name: Option<String>,
    /// `${pvc.metadata.namespace}`
    pub namespace: Option<String>,
    /// `${pv.metadata.name}`
    pub volume: Option<String>,
}

/// Replaces the variables in the value of `field`.
pub(super) fn expand(field: &str, template: &str, claim: &Claim) -> Result<String> {
    let mut out = String::with_capacity(template.len());
    let mut rest = template;
    while let Some(start) = rest.find("${") {
        out.push_str(&rest[..start]);
        let Some(length) = rest[start..].find('}') else {
            return Err(Error::new(
                Reason::InvalidValue,
                format!("{field}: {template:?} has \"${{\" without \"}}\""),
            ));
        };
        let variable = &rest[start + 2..start + length];
        out.push_str(lookup(field, variable, claim)?);
        rest = &rest[start + length + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

fn lookup<'a>(field: &str, variable: &str, claim: &'a Claim) -> Result<&'a str> {
    let value = match variable {
        "pvc.metadata.name" => &claim.name,
        "pvc.metadata.namespace" => &claim.namespace,
        "pv.metadata.name" => &claim.volume,
        _ => {
            return Err(Error::new(
                Reason::InvalidValue,
                format!(
                    "{field}: unknown variable ${{{variable}}}; known are ${{pvc.metadata.name}}, \
                     ${{pvc.metadata.namespace}} and ${{pv.metadata.name}}"
                ),
            ));
        }
    };
    value.as_deref().ok_or_else(|| {
        Error::new(
            Reason::InvalidValue,
            format!(
                "{field}: ${{{variable}}} is not known: external-provisioner passes it only when started \
                 with --extra-create-metadata"
            ),
        )
    })
}
