//! The CSI services and what they are made of.

pub mod account;
pub mod connect;
pub mod controller;
pub mod entra;
pub mod identity;
pub mod in_flight;
pub mod lending;
pub mod named_secret;
pub mod node;
pub mod registration;
pub mod volume_context;
pub mod volume_id;

use crate::error;

/// A required field of a request.
fn required<'a>(field: &str, value: &'a str) -> error::Result<&'a str> {
    if value.is_empty() {
        let message = format!("{field}: it is not set");
        return Err(error::Error::new(error::Reason::MissingField, message));
    }
    Ok(value)
}

/// Logs how a call ended - quiet when all is well - and turns its error into a status.
fn answer<T>(
    rpc: &'static str,
    volume: &str,
    result: error::Result<T>,
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
