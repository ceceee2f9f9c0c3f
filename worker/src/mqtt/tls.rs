//! Why TLS was refused, and what to do about it.

use std::io;

use rustls::{AlertDescription, CertificateError, Error};

/// The refusal in words, where TLS is what failed.
pub(super) fn refusal(error: &io::Error) -> Option<String> {
    let fault = error.get_ref()?.downcast_ref::<Error>()?;
    Some(match remedy(fault) {
        Some(remedy) => format!("{fault}; {remedy}"),
        None => fault.to_string(),
    })
}

fn remedy(fault: &Error) -> Option<&'static str> {
    use AlertDescription as Alert;
    match fault {
        Error::InvalidCertificate(why) => Some(match why {
            CertificateError::UnknownIssuer => {
                "no authority in tls.ca (or of this system, without one) signed the broker's certificate"
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                "the URL must name the broker as its certificate does"
            }
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
                "renew the broker's certificate"
            }
            _ => "the broker's certificate cannot be trusted",
        }),
        Error::AlertReceived(Alert::CertificateRequired | Alert::HandshakeFailure) => {
            Some("the broker asks for a certificate of this client; give tls.clientCertificate")
        }
        Error::AlertReceived(
            Alert::UnknownCA
            | Alert::BadCertificate
            | Alert::CertificateExpired
            | Alert::CertificateRevoked
            | Alert::CertificateUnknown
            | Alert::DecryptError,
        ) => Some("the broker does not take the certificate in tls.clientCertificate"),
        _ => None,
    }
}
