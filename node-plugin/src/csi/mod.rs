//! The CSI services and what they are made of.

pub mod account;
mod authority;
pub mod capability;
pub mod connect;
pub mod controller;
pub mod entra;
pub mod guard;
pub mod identity;
pub mod named_secret;
pub mod node;
pub mod registration;
pub mod server;
pub mod status;
pub mod volume_context;
pub mod volume_id;

/// A required field of a request.
fn required<'a>(field: &str, value: &'a str) -> status::Result<&'a str> {
    if value.is_empty() {
        let message = format!("{field}: it is not set");
        return Err(status::Error::new(status::Reason::MissingField, message));
    }
    Ok(value)
}

/// Logs how a call ended - quiet when all is well - and turns its error into a status.
fn answer<T>(
    rpc: &'static str,
    volume: &str,
    result: status::Result<T>,
) -> Result<tonic::Response<T>, tonic::Status> {
    match result {
        Ok(response) => {
            tracing::debug!(rpc, volume, "done");
            Ok(tonic::Response::new(response))
        }
        Err(error) => {
            tracing::warn!(
                rpc, volume, reason = %error.reason, code = ?error.reason.code(), "{}",
                error.message
            );
            Err(error.into())
        }
    }
}
