//! `connection_string` for MySQL, as SPIRE's driver (go-sql-driver/mysql) understands it:
//! `user:password@tcp(host:port)/name?parseTime=true&…`.

use std::time::Duration;

use finial_daemon::settings::GoDuration;
use sqlx::ConnectOptions;
use sqlx::mysql::{MySqlConnectOptions, MySqlSslMode};

use super::super::{percent_decoded, system_roots};
use crate::store::settings::TlsFiles;

const PORT: u16 = 3306;
const STATEMENTS: usize = 256;

/// Where to connect, and how.
pub(in crate::store) struct Options {
    pub(super) connect: MySqlConnectOptions,
    /// For messages.
    pub(super) place: String,
    /// System variables to set, with their values as they were given.
    pub(super) variables: Vec<(String, String)>,
    pub(in crate::store) connect_timeout: Option<Duration>,
}

/// Parameters that steer the inside of SPIRE's driver.
const NO_EFFECT: [&str; 13] = [
    "allowAllFiles",
    "allowNativePasswords",
    "checkConnLiveness",
    "clientFoundRows",
    "columnsWithAlias",
    "compress",
    "connectionAttributes",
    "interpolateParams",
    "maxAllowedPacket",
    "multiStatements",
    "rejectReadOnly",
    "readTimeout",
    "writeTimeout",
];

/// Reads a data source name. The error never holds a value that may be secret.
pub(in crate::store) fn parse(text: &str, files: &TlsFiles) -> Result<Options, String> {
    // The last slash: a password or a socket's path may have others.
    let Some((left, right)) = text.rsplit_once('/') else {
        return Err("invalid DSN: missing the slash separating the database name".to_owned());
    };
    let (login, place) = match left.rsplit_once('@') {
        Some((login, place)) => (login, place),
        None => ("", left),
    };
    let (user, password) = login.split_once(':').unwrap_or((login, ""));
    let (network, address) = match place.split_once('(') {
        None => (place, ""),
        Some((network, address)) => match address.strip_suffix(')') {
            Some(address) => (network, address),
            None => {
                return Err("invalid DSN: network address not terminated (missing closing brace)".to_owned());
            }
        },
    };
    let (name, query) = right.split_once('?').unwrap_or((right, ""));
    let name = percent_decoded(name, false).ok_or("invalid DSN: the name of the database is not text")?;

    let mut connect = MySqlConnectOptions::new()
        .username(user)
        .database(&name)
        .statement_cache_capacity(STATEMENTS)
        .disable_statement_logging();
    if !password.is_empty() {
        connect = connect.password(password);
    }
    let (connect, place, host) = locate(connect, network, address)?;
    let mut parameters = Parameters::default();
    for pair in query.split('&') {
        if let Some((key, value)) = pair.split_once('=') {
            parameters.take(key, value)?;
        }
    }
    if !parameters.parse_time {
        return Err("invalid mysql config: missing parseTime=true param in connection_string".to_owned());
    }
    let mut connect = secure(connect, &parameters, files, host)?;
    if let Some(charset) = &parameters.charset {
        connect = connect.charset(charset);
    }
    if let Some(collation) = &parameters.collation {
        connect = connect.collation(collation);
    }
    connect = connect.enable_cleartext_plugin(parameters.cleartext);
    Ok(Options { connect, place, variables: parameters.variables, connect_timeout: parameters.timeout })
}

#[derive(Default)]
struct Parameters {
    parse_time: bool,
    cleartext: bool,
    fallback: bool,
    tls: Option<String>,
    charset: Option<String>,
    collation: Option<String>,
    timeout: Option<Duration>,
    variables: Vec<(String, String)>,
}

impl Parameters {
    fn take(&mut self, key: &str, value: &str) -> Result<(), String> {
        match key {
            "parseTime" => self.parse_time = boolean(key, value)?,
            "allowCleartextPasswords" => self.cleartext = boolean(key, value)?,
            "allowFallbackToPlaintext" => self.fallback = boolean(key, value)?,
            "tls" => self.tls = Some(value.to_owned()),
            // Of several, SPIRE's driver takes the first that the server has.
            "charset" => self.charset = value.split(',').next().map(word).transpose()?,
            "collation" => self.collation = Some(word(value)?),
            "timeout" => {
                let timeout = value.parse::<GoDuration>().map_err(|error| format!("timeout: {error}"))?;
                self.timeout = Some(timeout.0).filter(|timeout| !timeout.is_zero());
            }
            "loc" if value.eq_ignore_ascii_case("UTC") => {}
            "loc" => return Err("loc: only UTC is built; remove it".to_owned()),
            "allowOldPasswords" if boolean(key, value)? => {
                return Err(
                    "allowOldPasswords: such passwords are not built; renew the user's password".to_owned()
                );
            }
            "allowOldPasswords" => {}
            "serverPubKey" | "timeTruncate" => return Err(format!("{key}: not built; remove it")),
            key if NO_EFFECT.contains(&key) => {}
            name => {
                let value = percent_decoded(value, true).ok_or_else(|| format!("{name} is not text"))?;
                if !value.bytes().all(|b| b.is_ascii_alphanumeric() || b"'\"-_+., :".contains(&b)) {
                    return Err(format!("{name}: not a value of a system variable"));
                }
                self.variables.push((word(name)?, value));
            }
        }
        Ok(())
    }
}

fn locate(
    connect: MySqlConnectOptions,
    network: &str,
    address: &str,
) -> Result<(MySqlConnectOptions, String, Option<String>), String> {
    match network {
        "" | "tcp" | "tcp4" | "tcp6" => {
            let (host, port) = match address.rsplit_once(':') {
                // A colon inside of brackets belongs to an address.
                Some((host, port)) if !port.contains(']') => {
                    let port = port
                        .parse::<u16>()
                        .map_err(|_| "the address does not end in a number of a port".to_owned())?;
                    (host, port)
                }
                _ => (address, PORT),
            };
            let host = host.trim_matches(['[', ']']);
            let host = if host.is_empty() { "127.0.0.1" } else { host };
            Ok((connect.host(host).port(port), format!("{host}:{port}"), Some(host.to_owned())))
        }
        "unix" => {
            let path = if address.is_empty() { "/tmp/mysql.sock" } else { address };
            Ok((connect.socket(path), path.to_owned(), None))
        }
        // Not named: without an "@" in front it would be user and password.
        _ => Err("the network is neither tcp nor unix; write user:password@tcp(host:port)/name".to_owned()),
    }
}

/// TLS as `tls=` asks for it; certificate files of the plugin's settings come first.
fn secure(
    connect: MySqlConnectOptions,
    parameters: &Parameters,
    files: &TlsFiles,
    host: Option<String>,
) -> Result<MySqlConnectOptions, String> {
    let given = |path: &Option<String>| path.clone().filter(|path| !path.is_empty());
    let (roots, certificate, key) =
        (given(&files.root_ca_path), given(&files.client_cert_path), given(&files.client_key_path));
    let pair = certificate.zip(key);
    let mode = if roots.is_some() || pair.is_some() {
        MySqlSslMode::VerifyIdentity
    } else {
        match parameters.tls.as_deref() {
            None | Some("" | "false" | "FALSE" | "False" | "0") => MySqlSslMode::Disabled,
            Some("true" | "TRUE" | "True" | "1") => MySqlSslMode::VerifyIdentity,
            Some(text) if text.eq_ignore_ascii_case("skip-verify") => MySqlSslMode::Required,
            Some(text) if text.eq_ignore_ascii_case("preferred") => MySqlSslMode::Preferred,
            Some(_) => return Err("invalid value / unknown config name of tls".to_owned()),
        }
    };
    if parameters.fallback && !matches!(mode, MySqlSslMode::Disabled | MySqlSslMode::Preferred) {
        return Err("allowFallbackToPlaintext: only built with tls=preferred".to_owned());
    }
    let mut connect = connect.ssl_mode(mode);
    if matches!(mode, MySqlSslMode::VerifyIdentity) {
        if host.is_none() {
            return Err("TLS needs a host whose name can be checked; use tcp(host:port), or tls=skip-verify"
                .to_owned());
        }
        if let Some(file) = roots.clone().or_else(system_roots) {
            let pem = std::fs::read(&file)
                .map_err(|_| "invalid mysql config: cannot find Root CA defined in root_ca_path")?;
            if !String::from_utf8_lossy(&pem).contains("-----BEGIN CERTIFICATE-----") {
                return Err(
                    "invalid mysql config: failed to parse Root CA defined in root_ca_path".to_owned()
                );
            }
            connect = connect.ssl_ca_from_pem(pem);
        }
    }
    if let Some((certificate, key)) = pair {
        for file in [&certificate, &key] {
            std::fs::read(file).map_err(|_| {
                "invalid mysql config: failed to load client certificate defined in client_cert_path and client_key_path"
            })?;
        }
        connect = connect.ssl_client_cert(certificate).ssl_client_key(key);
    }
    Ok(connect)
}

fn boolean(key: &str, value: &str) -> Result<bool, String> {
    match value {
        "1" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(format!("invalid bool value of {key}: {value:?}")),
    }
}

/// A name that may stand in a statement.
fn word(text: &str) -> Result<String, String> {
    match !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is not a name of a system variable, character set or collation")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Options, String> {
        parse(text, &TlsFiles::default())
    }

    #[test]
    fn data_source_names_of_spire_are_understood() {
        let options =
            parsed("me:p@s/s:w@tcp(db.test:3307)/spi%2Fre?parseTime=true&timeout=2s&sort_buffer_size=1000");
        let options = options.unwrap();
        assert_eq!(options.place, "db.test:3307");
        assert_eq!((options.connect.get_username(), options.connect.get_database()), ("me", Some("spi/re")));
        assert_eq!(options.connect_timeout, Some(Duration::from_secs(2)));
        assert_eq!(options.variables, [("sort_buffer_size".to_owned(), "1000".to_owned())]);
        assert!(matches!(options.connect.get_ssl_mode(), MySqlSslMode::Disabled));

        for (text, place) in [
            ("me@/x?parseTime=true", "127.0.0.1:3306"),
            ("me@tcp/x?parseTime=true", "127.0.0.1:3306"),
            ("me@tcp(db)/x?parseTime=true", "db:3306"),
            ("me@tcp([::1]:7)/x?parseTime=true", "::1:7"),
            ("me@unix(/run/my.sock)/x?parseTime=1", "/run/my.sock"),
        ] {
            assert_eq!(parsed(text).unwrap().place, place, "{text}");
        }
    }

    #[test]
    fn tls_is_what_the_parameter_says() {
        for (value, expected) in [
            ("true", MySqlSslMode::VerifyIdentity),
            ("skip-verify", MySqlSslMode::Required),
            ("preferred", MySqlSslMode::Preferred),
            ("false", MySqlSslMode::Disabled),
        ] {
            let options = parsed(&format!("me@tcp(db)/x?parseTime=true&tls={value}")).unwrap();
            let mode = options.connect.get_ssl_mode();
            assert_eq!(format!("{mode:?}"), format!("{expected:?}"), "{value}");
        }
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name_and_without_the_password() {
        for (text, reason) in [
            ("me:hush@tcp(db)/x", "invalid mysql config: missing parseTime=true param in connection_string"),
            ("me:hush@tcp(db)/x?parseTime=false", "missing parseTime=true"),
            ("me:hush@tcp(db", "missing the slash"),
            ("me:hush@tcp(db/x?parseTime=true", "missing closing brace"),
            ("me:hush@tcp(db:x)/x?parseTime=true", "a number of a port"),
            ("me:hush@pipe(db)/x?parseTime=true", "neither tcp nor unix"),
            ("me:hush(db)/x?parseTime=true", "neither tcp nor unix"),
            ("me:x@hush(db)/x?parseTime=true", "neither tcp nor unix"),
            ("me:x@tcp(db:hush)/x?parseTime=true", "a number of a port"),
            ("me:hush@tcp(db)/x?parseTime=true&tls=own", "unknown config name"),
            ("me:hush@tcp(db)/x?parseTime=true&loc=Local", "only UTC"),
            ("me:hush@tcp(db)/x?parseTime=true&a;b=1", "not a name of a system variable"),
            ("me:hush@tcp(db)/x?parseTime=true&a=1;b", "not a value of a system variable"),
            ("me:hush@tcp(db)/x?parseTime=maybe", "invalid bool value of parseTime"),
            ("me:hush@unix(/x)/x?parseTime=true&tls=true", "TLS needs a host"),
        ] {
            let error = parsed(text).err().unwrap();
            assert!(error.contains(reason), "{text}: {error}");
            assert!(!error.contains("hush"), "{error}");
        }
        let files = TlsFiles { root_ca_path: Some("/nowhere".to_owned()), ..TlsFiles::default() };
        let error = parse("me@tcp(db)/x?parseTime=true", &files).err().unwrap();
        assert_eq!(error, "invalid mysql config: cannot find Root CA defined in root_ca_path");
    }
}
