//! Connections to one server, over TCP, TLS or a Unix socket.
//!
//! TLS is done here and not by the `redis` crate, which cannot be told a name to expect, and which
//! wants a crypto provider for the whole process.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use ::redis::aio::{MultiplexedConnection, PubSub};
use ::redis::{AsyncConnectionConfig, RedisConnectionInfo, RedisError, RedisResult};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, Error as TlsError, RootCertStore,
    SignatureScheme,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::error::{Failure, StoreError};
use super::settings::{Endpoint, Password, Tls};

/// Where a connection goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Server {
    Tcp(Endpoint),
    Socket(String),
}

impl std::fmt::Display for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tcp(endpoint) => endpoint.fmt(f),
            Self::Socket(path) => f.write_str(path),
        }
    }
}

trait Bytes: AsyncRead + AsyncWrite + Send {}
impl<T: AsyncRead + AsyncWrite + Send> Bytes for T {}
type Stream = Pin<Box<dyn Bytes>>;

/// How to log in, and to what kind of server: the sentinels and Redis have one each.
#[derive(Clone)]
pub(super) struct Dialer {
    username: Option<String>,
    password: Option<Password>,
    db: u32,
    tls: Option<(TlsConnector, Option<ServerName<'static>>)>,
    timeout: Duration,
}

/// A connection with the task that drives it.
pub(super) struct Connection {
    pub(super) commands: MultiplexedConnection,
    pub(super) server: Server,
    /// Of the server's process; something unique where it is not known.
    pub(super) run_id: String,
    pub(super) known_run_id: bool,
    driver: JoinHandle<()>,
}

impl Drop for Connection {
    /// Closes the socket now, so that a command that timed out is not delivered much later.
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Dialer {
    /// `timeout` bounds one connection, login included.
    ///
    /// # Errors
    /// [`Failure::Settings`] for TLS settings that cannot be used.
    pub(super) fn new(
        username: Option<&String>,
        password: Option<&Password>,
        db: u32,
        tls: Option<&Tls>,
        timeout: Duration,
    ) -> Result<Self, StoreError> {
        let tls = tls
            .map(|tls| Ok((connector(tls)?, expected_name(tls)?)))
            .transpose()?;
        Ok(Self {
            username: username.cloned(),
            password: password.cloned(),
            db,
            tls,
            timeout,
        })
    }

    /// What must not be repeated.
    pub(super) fn secrets(&self) -> Vec<&str> {
        self.password.iter().map(Password::expose).collect()
    }

    /// What a connection's first command met. TLS 1.3 has a server refuse the client's certificate
    /// only after the handshake.
    pub(super) fn refused(&self, server: &Server, error: &RedisError) -> StoreError {
        let error = StoreError::of(error, server, &self.secrets());
        if self.tls.is_some() && error.failure == Failure::Unreachable {
            no_tls(server, error)
        } else {
            error
        }
    }

    fn info(&self) -> RedisConnectionInfo {
        let mut info = RedisConnectionInfo::default()
            .set_db(i64::from(self.db))
            // Two commands per connection that tell nobody anything.
            .set_skip_set_lib_name();
        if let Some(username) = &self.username {
            info = info.set_username(username);
        }
        if let Some(password) = &self.password {
            info = info.set_password(password.expose());
        }
        info
    }

    /// A connection for commands.
    pub(super) async fn connect(&self, server: &Server) -> Result<Connection, StoreError> {
        // Timeouts are this module's: the crate's default of 500 ms is nobody's setting.
        let config = AsyncConnectionConfig::new().set_response_timeout(None);
        let info = self.info();
        let (commands, driver) = self
            .login(server, |stream| async move {
                let made = MultiplexedConnection::new_with_config(&info, stream, config).await;
                made.map(|(commands, driver)| (commands, tokio::spawn(driver)))
            })
            .await?;
        Ok(Connection {
            commands,
            server: server.clone(),
            run_id: String::new(),
            known_run_id: false,
            driver,
        })
    }

    /// A connection for subscriptions.
    pub(super) async fn subscriber(&self, server: &Server) -> Result<PubSub, StoreError> {
        let info = self.info();
        self.login(
            server,
            |stream| async move { PubSub::new(&info, stream).await },
        )
        .await
    }

    async fn login<T, F: Future<Output = RedisResult<T>>>(
        &self,
        server: &Server,
        login: impl FnOnce(Stream) -> F,
    ) -> Result<T, StoreError> {
        let connecting = async {
            let logged_in = login(self.open(server).await?).await;
            logged_in.map_err(|error| self.refused(server, &error))
        };
        timeout(self.timeout, connecting).await.unwrap_or_else(|_| {
            let patience = self.timeout.as_millis();
            Err(StoreError::timeout(server, "connecting", patience))
        })
    }

    async fn open(&self, server: &Server) -> Result<Stream, StoreError> {
        let unreachable = |error: io::Error| {
            let message = format!("cannot connect to Redis at {server}: {error}");
            StoreError::new(Failure::Unreachable, message)
        };
        let endpoint = match server {
            Server::Tcp(endpoint) => endpoint,
            Server::Socket(path) => return open_socket(path).await.map_err(unreachable),
        };
        let socket = TcpStream::connect((endpoint.host.as_str(), endpoint.port))
            .await
            .map_err(unreachable)?;
        socket.set_nodelay(true).map_err(unreachable)?;
        let Some((connector, expected)) = &self.tls else {
            return Ok(Box::pin(socket));
        };
        let name = match expected {
            Some(name) => name.clone(),
            None => ServerName::try_from(endpoint.host.clone())
                .map_err(|error| no_tls(server, error))?,
        };
        let stream = connector.connect(name, socket).await;
        Ok(Box::pin(stream.map_err(|error| no_tls(server, error))?))
    }
}

#[cfg(unix)]
async fn open_socket(path: &str) -> io::Result<Stream> {
    Ok(Box::pin(tokio::net::UnixStream::connect(path).await?))
}

#[cfg(not(unix))]
async fn open_socket(_path: &str) -> io::Result<Stream> {
    Err(io::ErrorKind::Unsupported.into())
}

fn no_tls(server: &Server, why: impl std::fmt::Display) -> StoreError {
    let message = format!(
        "no TLS with Redis at {server}: {why}. Check tls in the redis option: ca, servername, cert and key, and that this port speaks TLS"
    );
    StoreError::new(Failure::Tls, message)
}

fn unusable(field: &str, why: impl std::fmt::Display) -> StoreError {
    let message = format!("tls.{field} in the redis option cannot be used: {why}");
    StoreError::new(Failure::Settings, message)
}

fn expected_name(tls: &Tls) -> Result<Option<ServerName<'static>>, StoreError> {
    let name = tls.servername.clone().map(ServerName::try_from);
    name.transpose()
        .map_err(|error| unusable("servername", error))
}

fn connector(tls: &Tls) -> Result<TlsConnector, StoreError> {
    let provider = Arc::new(ring::default_provider());
    let mut trusted = Vec::new();
    for pem in &tls.ca {
        let before = trusted.len();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            trusted.push(certificate.map_err(|error| unusable("ca", error))?);
        }
        if trusted.len() == before {
            return Err(unusable("ca", "there is no PEM certificate in it"));
        }
    }
    let verifier = Verifier {
        inner: if tls.reject_unauthorized {
            let mut roots = RootCertStore::empty();
            // Node's own list has some that this library does not take, and nobody needs all.
            let (added, _) = roots.add_parsable_certificates(trusted.iter().cloned());
            if added == 0 {
                return Err(unusable("ca", "none of its certificates can be a root"));
            }
            let verifier =
                WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
            Some(verifier.build().map_err(|error| unusable("ca", error))?)
        } else {
            None
        },
        trusted,
        provider: provider.clone(),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable("ca", error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier));
    let config = match (&tls.cert, &tls.key) {
        (Some(cert), Some(key)) => {
            let chain: Result<Vec<_>, _> =
                CertificateDer::pem_slice_iter(cert.as_bytes()).collect();
            let chain = chain.map_err(|error| unusable("cert", error))?;
            let key = PrivateKeyDer::from_pem_slice(key.expose().as_bytes()).map_err(|error| {
                unusable(
                    "key",
                    format!("{error}; it has to be PEM and not encrypted"),
                )
            })?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| unusable("cert", error))?
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(TlsConnector::from(Arc::new(config)))
}

/// What `tls.connect()` of Node accepts and webpki alone does not: a server whose own certificate
/// is listed as trusted, although it is marked as an authority (what `openssl req -x509` makes);
/// and any certificate at all, where `rejectUnauthorized` is false.
#[derive(Debug)]
struct Verifier {
    /// None: nothing is checked.
    inner: Option<Arc<WebPkiServerVerifier>>,
    trusted: Vec<CertificateDer<'static>>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsError> {
        let Some(inner) = &self.inner else {
            return Ok(ServerCertVerified::assertion());
        };
        let verified =
            inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            Err(TlsError::InvalidCertificate(CertificateError::Other(_)))
                if self.trusted.iter().any(|cert| cert == end_entity) =>
            {
                let parsed = rustls::server::ParsedCertificate::try_from(end_entity)?;
                rustls::client::verify_server_name(&parsed, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let schemes = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, dss, schemes)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsError> {
        let schemes = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, dss, schemes)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        let schemes = &self.provider.signature_verification_algorithms;
        schemes.supported_schemes()
    }
}
