//! `connection_string` for PostgreSQL, as SPIRE's driver (lib/pq) understands it: `key=value` pairs or a URL, on top of
//! the `PG…` variables of the environment.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::super::{percent_decoded, system_roots};

const PORT: u16 = 5432;
const STATEMENTS: usize = 256;

/// Where to connect, and how.
pub(in crate::store) struct Options {
    /// To be tried in this order.
    pub(in crate::store) hosts: Vec<PgConnectOptions>,
    pub(super) session: Session,
    pub(in crate::store) connect_timeout: Option<Duration>,
}

/// `target_session_attrs`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Session {
    Any,
    ReadWrite,
    ReadOnly,
}

impl Session {
    /// Whether the session must be one that cannot write.
    pub(super) fn read_only(self) -> Option<bool> {
        match self {
            Session::Any => None,
            Session::ReadWrite => Some(false),
            Session::ReadOnly => Some(true),
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Session::Any => "any",
            Session::ReadWrite => "read-write",
            Session::ReadOnly => "read-only",
        }
    }
}

/// Keys of lib/pq that make no sense here or are not built. What they are set to does not matter.
const REFUSED: [(&str, &str); 9] = [
    ("krbsrvname", "Kerberos is not built; use a password or a client certificate"),
    ("krbspn", "Kerberos is not built; use a password or a client certificate"),
    ("service", "service files are not read; write the settings into connection_string"),
    ("servicefile", "service files are not read; write the settings into connection_string"),
    ("passfile", "password files are not read; write the password into connection_string, or set PGPASSWORD"),
    ("ssl_min_protocol_version", "TLS is always version 1.2 or 1.3; remove it"),
    ("ssl_max_protocol_version", "TLS is always version 1.2 or 1.3; remove it"),
    ("min_protocol_version", "the protocol is always version 3.0; remove it"),
    ("max_protocol_version", "the protocol is always version 3.0; remove it"),
];
/// Keys that steer the inside of lib/pq, or say what is so anyway.
const NO_EFFECT: [&str; 3] =
    ["binary_parameters", "disable_prepared_binary_result", "fallback_application_name"];
/// Variables of the environment that lib/pq reads, and their keys.
const VARIABLES: [(&str, &str); 15] = [
    ("PGHOST", "host"),
    ("PGHOSTADDR", "hostaddr"),
    ("PGPORT", "port"),
    ("PGDATABASE", "dbname"),
    ("PGUSER", "user"),
    ("PGPASSWORD", "password"),
    ("PGPASSFILE", "passfile"),
    ("PGOPTIONS", "options"),
    ("PGAPPNAME", "application_name"),
    ("PGSSLMODE", "sslmode"),
    ("PGSSLCERT", "sslcert"),
    ("PGSSLKEY", "sslkey"),
    ("PGSSLROOTCERT", "sslrootcert"),
    ("PGCONNECT_TIMEOUT", "connect_timeout"),
    ("PGTARGETSESSIONATTRS", "target_session_attrs"),
];

/// Reads a connection string. The error never holds a value that may be secret.
pub(in crate::store) fn parse(text: &str) -> Result<Options, String> {
    let environment = VARIABLES
        .into_iter()
        .filter_map(|(variable, key)| Some((key.to_owned(), std::env::var(variable).ok()?)));
    let mut given: BTreeMap<String, String> = environment.collect();
    if text.starts_with("postgres://") || text.starts_with("postgresql://") {
        given.extend(url_pairs(text)?);
    } else {
        given.extend(pairs(text)?);
    }
    options(given)
}

/// Host and port, for messages.
pub(super) fn place(host: &PgConnectOptions) -> String {
    match host.get_socket() {
        Some(socket) => format!("{}/.s.PGSQL.{}", socket.display(), host.get_port()),
        None => format!("{}:{}", host.get_host(), host.get_port()),
    }
}

fn options(mut given: BTreeMap<String, String>) -> Result<Options, String> {
    for (key, reason) in REFUSED {
        if given.contains_key(key) {
            return Err(format!("{key}: {reason}"));
        }
    }
    let fallback_name = given.get("fallback_application_name").cloned();
    NO_EFFECT.iter().for_each(|key| _ = given.remove(*key));
    let mut take = |key: &str| given.remove(key);

    for (key, only) in [
        ("sslinline", "false"),
        ("sslsni", "1"),
        ("sslnegotiation", "postgres"),
        ("load_balance_hosts", "disable"),
        ("datestyle", "ISO, MDY"),
    ] {
        if take(key).is_some_and(|value| value != only) {
            return Err(format!("{key}: only {only:?} is built; remove it"));
        }
    }
    let encoding = take("client_encoding").unwrap_or_default().to_ascii_uppercase().replace('-', "");
    if !matches!(encoding.as_str(), "" | "UTF8" | "'UTF8'") {
        return Err("client_encoding must be absent or \"UTF8\"".to_owned());
    }
    let seconds = take("connect_timeout").filter(|text| !text.is_empty());
    let seconds =
        seconds.map(|text| text.parse::<u64>().map_err(|_| "connect_timeout is not a number of seconds"));
    let connect_timeout = seconds.transpose()?.filter(|seconds| *seconds > 0).map(Duration::from_secs);
    let session = match take("target_session_attrs").as_deref() {
        None | Some("any") => Session::Any,
        Some("read-write" | "primary") => Session::ReadWrite,
        Some("read-only" | "standby") => Session::ReadOnly,
        Some(other) => return Err(format!("target_session_attrs: {other:?} is not built")),
    };

    let mut base = PgConnectOptions::new_without_pgpass()
        .statement_cache_capacity(STATEMENTS)
        .extra_float_digits(None)
        .disable_statement_logging();
    if let Some(user) = take("user").filter(|user| !user.is_empty()) {
        base = base.username(&user);
    }
    if let Some(password) = take("password").filter(|password| !password.is_empty()) {
        base = base.password(&password);
    }
    // Without a name the database is that of the user's name.
    if let Some(name) = take("dbname").filter(|name| !name.is_empty()) {
        base = base.database(&name);
    }
    if let Some(name) = take("application_name").or(fallback_name) {
        base = base.application_name(&name);
    }
    base = tls(base, take("sslmode"), take("sslrootcert"), take("sslcert"), take("sslkey"))?;
    let hosts = hosts(&base, take("host"), take("hostaddr"), take("port"))?;
    let command_line = take("options").filter(|options| !options.is_empty());
    if command_line.is_some() && std::env::var("PGOPTIONS").ok() != command_line {
        return Err("options: not built; write each run-time parameter as a pair of its own".to_owned());
    }
    // What is left are run-time parameters.
    let runtime: Vec<_> = given.into_iter().collect();
    let with_runtime = |host: PgConnectOptions| match runtime.is_empty() {
        true => host,
        false => host.options(runtime.clone()),
    };
    let hosts = hosts.into_iter().map(with_runtime).collect();
    Ok(Options { hosts, session, connect_timeout })
}

fn tls(
    base: PgConnectOptions,
    mode: Option<String>,
    roots: Option<String>,
    certificate: Option<String>,
    key: Option<String>,
) -> Result<PgConnectOptions, String> {
    let named = |given: Option<String>, usual: &str| match given.filter(|path| !path.is_empty()) {
        Some(path) => Some(PathBuf::from(path)),
        None => Some(Path::new(&std::env::var("HOME").ok()?).join(".postgresql").join(usual))
            .filter(|path| path.is_file()),
    };
    let system = roots.as_deref() == Some("system");
    let mode = match (mode.as_deref(), system) {
        (None | Some("verify-full"), true) | (Some("verify-full"), false) => PgSslMode::VerifyFull,
        (Some(weak), true) => {
            return Err(format!(
                "weak sslmode {weak:?} may not be used with sslrootcert=system (use \"verify-full\")"
            ));
        }
        (Some("disable" | "allow"), _) => return Ok(base.ssl_mode(PgSslMode::Disable)),
        (Some("prefer"), _) => PgSslMode::Prefer,
        (None | Some("" | "require"), _) => PgSslMode::Require,
        (Some("verify-ca"), _) => PgSslMode::VerifyCa,
        (Some(other), _) => {
            return Err(format!(
                "sslmode {other:?} is not supported; supported values are disable, allow, prefer, require, verify-ca, \
                 verify-full"
            ));
        }
    };
    let roots = if system { None } else { named(roots, "root.crt") };
    // The driver trusts the well-known authorities beside those of sslrootcert. Anybody can have a certificate of them, so
    // whoever checks the issuer has to check the name too.
    let mode = match (mode, &roots) {
        (PgSslMode::Require | PgSslMode::Prefer, Some(file)) if file.is_file() => PgSslMode::VerifyFull,
        (PgSslMode::VerifyCa, _) => PgSslMode::VerifyFull,
        (mode, _) => mode,
    };
    let mut base = base.ssl_mode(mode);
    if matches!(mode, PgSslMode::VerifyFull)
        && let Some(file) = roots.or_else(|| system_roots().map(PathBuf::from))
    {
        base = base.ssl_root_cert(file);
    }
    if let Some(file) = named(certificate, "postgresql.crt").filter(|file| file.is_file()) {
        let key = named(key, "postgresql.key").ok_or("sslcert is set, sslkey is not")?;
        base = base.ssl_client_cert(file).ssl_client_key(key);
    }
    Ok(base)
}

fn hosts(
    base: &PgConnectOptions,
    host: Option<String>,
    address: Option<String>,
    port: Option<String>,
) -> Result<Vec<PgConnectOptions>, String> {
    let host = host.unwrap_or_default();
    let address = address.filter(|address| !address.is_empty());
    if address.is_some() && !host.is_empty() && matches!(base.get_ssl_mode(), PgSslMode::VerifyFull) {
        return Err(
            "hostaddr beside host is not built where certificates are checked; remove hostaddr".to_owned()
        );
    }
    let names = address.unwrap_or(host);
    let names: Vec<&str> = names.split(',').collect();
    let ports = port.unwrap_or_default();
    let ports = ports.split(',').map(|port| match port.trim() {
        "" => Ok(PORT),
        port => port.parse::<u16>().map_err(|_| {
            // Of a URL with a bare "/" in its password this would be a part of that.
            "port is not a number of a port; in a URL, write \"/\" in a password as %2F".to_owned()
        }),
    });
    let ports = ports.collect::<Result<Vec<_>, _>>()?;
    if ports.len() > 1 && ports.len() != names.len() {
        return Err(format!("could not match {} port numbers to {} hosts", ports.len(), names.len()));
    }
    let place = |(at, name): (usize, &&str)| {
        let port = ports.get(at).or(ports.first()).copied().unwrap_or(PORT);
        let base = base.clone().port(port);
        match name.trim() {
            "" => base.host("localhost"),
            // TLS is neither needed nor offered on a socket.
            directory if directory.starts_with('/') => base.ssl_mode(PgSslMode::Disable).socket(directory),
            name => base.host(name.trim_matches(['[', ']'])),
        }
    };
    Ok(names.iter().enumerate().map(place).collect())
}

/// `key=value` pairs as libpq reads them: `'…'` around values with spaces, `\` before any character.
fn pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut characters = text.chars().peekable();
    let mut found = Vec::new();
    loop {
        while characters.next_if(|c| c.is_whitespace()).is_some() {}
        if characters.peek().is_none() {
            return Ok(found);
        }
        let mut key = String::new();
        while let Some(c) = characters.next_if(|c| !c.is_whitespace() && *c != '=') {
            key.push(c);
        }
        while characters.next_if(|c| c.is_whitespace()).is_some() {}
        if characters.next() != Some('=') {
            // What stands there may be the end of a password with a space.
            return Err("missing \"=\" in connection info string; put values with spaces into '…'".to_owned());
        }
        while characters.next_if(|c| c.is_whitespace()).is_some() {}
        let quoted = characters.next_if_eq(&'\'').is_some();
        let mut value = String::new();
        loop {
            match characters.next_if(|c| quoted || !c.is_whitespace()) {
                Some('\'') if quoted => break,
                Some('\\') => value.push(characters.next().ok_or("missing character after backslash")?),
                Some(c) => value.push(c),
                None if quoted => {
                    return Err("unterminated quoted string literal in connection string".to_owned());
                }
                None => break,
            }
        }
        found.push((key, value));
    }
}

/// `postgres://user:password@host:port/name?key=value&…`
fn url_pairs(text: &str) -> Result<Vec<(String, String)>, String> {
    let wrong = |what: &str| format!("the URL has a wrong {what}");
    let (_, rest) = text.split_once("://").ok_or_else(|| wrong("scheme"))?;
    let whole = rest;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    if whole.contains('@') && !authority.contains('@') {
        // What looks like host and port is a user and the beginning of a password.
        return Err(
            "the URL has an \"@\" behind the host; write \"/\" in a password as %2F, \"?\" as %3F".to_owned()
        );
    }
    let (user, place) = match authority.rsplit_once('@') {
        Some((user, place)) => (Some(user), place),
        None => (None, authority),
    };
    let decoded = |text: &str, what: &str| percent_decoded(text, false).ok_or_else(|| wrong(what));
    let mut found = Vec::new();
    let mut add = |key: &str, value: String| {
        if !value.is_empty() {
            found.push((key.to_owned(), value));
        }
    };
    if let Some(user) = user {
        let (name, password) = user.split_once(':').unwrap_or((user, ""));
        add("user", decoded(name, "user")?);
        add("password", decoded(password, "password")?);
    }
    // A colon inside of brackets belongs to an address.
    let (host, port) = match place.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (place, ""),
    };
    add("host", decoded(host, "host")?);
    add("port", port.to_owned());
    add("dbname", decoded(path, "database name")?);
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = percent_decoded(key, true).ok_or_else(|| wrong("parameter"))?;
        add(&key, percent_decoded(value, true).ok_or_else(|| wrong("parameter"))?);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Options {
        parse(text).unwrap()
    }

    fn places(options: &Options) -> Vec<String> {
        options.hosts.iter().map(place).collect()
    }

    #[test]
    fn pairs_are_read_as_libpq_reads_them() {
        assert_eq!(
            pairs(r"  user = me password='it''  x=a\ b y='\'\\' z=").unwrap_err(),
            "missing \"=\" in connection info string; put values with spaces into '…'"
        );
        let found = pairs(r"user = me  password='with space' x=a\ b y='\'\\' z=").unwrap();
        let expected = [("user", "me"), ("password", "with space"), ("x", "a b"), ("y", r"'\"), ("z", "")];
        assert_eq!(found, expected.map(|(key, value)| (key.to_owned(), value.to_owned())));
        for wrong in ["user", "user me", "a='", r"a=\"] {
            assert!(pairs(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_url_means_the_same_as_its_pairs() {
        for text in [
            "postgres://me:p%40ss@db.test:5433/spire?sslmode=disable&application_name=a+b",
            "postgresql://me:p%40ss@db.test/spire?sslmode=disable&application_name=a%20b&port=5433",
            "user=me password=p@ss host=db.test port=5433 dbname=spire sslmode=disable application_name='a b'",
        ] {
            let options = parsed(text);
            let host = &options.hosts[0];
            assert_eq!(places(&options), ["db.test:5433"], "{text}");
            assert_eq!((host.get_username(), host.get_database()), ("me", Some("spire")), "{text}");
            assert_eq!(host.get_application_name(), Some("a b"), "{text}");
            assert!(matches!(host.get_ssl_mode(), PgSslMode::Disable), "{text}");
        }
    }

    #[test]
    fn what_is_not_said_is_as_in_spires_driver() {
        let options = parsed("dbname=spire user=me");
        assert_eq!(places(&options), ["localhost:5432"]);
        assert!(matches!(options.hosts[0].get_ssl_mode(), PgSslMode::Require));
        assert_eq!((options.session, options.connect_timeout), (Session::Any, None));
    }

    #[test]
    fn several_hosts_are_tried_in_order() {
        let text = "host=a,b,/run/pg port=1,,3 dbname=x target_session_attrs=read-write connect_timeout=3";
        let options = parsed(text);
        assert_eq!(places(&options), ["a:1", "b:5432", "/run/pg/.s.PGSQL.3"]);
        assert_eq!(
            (options.session, options.connect_timeout),
            (Session::ReadWrite, Some(Duration::from_secs(3)))
        );
        assert_eq!(places(&parsed("host=a,b port=7 dbname=x")), ["a:7", "b:7"]);
        assert_eq!(places(&parsed("postgres://[::1]:7/x")), ["::1:7"]);
    }

    #[test]
    fn whoever_checks_the_issuer_checks_the_name() {
        for mode in ["verify-ca", "verify-full"] {
            let options = parsed(&format!("dbname=x sslmode={mode} sslrootcert=/a/ca.pem"));
            assert!(matches!(options.hosts[0].get_ssl_mode(), PgSslMode::VerifyFull), "{mode}");
        }
        assert!(matches!(
            parsed("dbname=x sslrootcert=system").hosts[0].get_ssl_mode(),
            PgSslMode::VerifyFull
        ));
        let here = std::env::current_exe().unwrap();
        let options = parsed(&format!("dbname=x sslmode=require sslrootcert={}", here.display()));
        assert!(matches!(options.hosts[0].get_ssl_mode(), PgSslMode::VerifyFull));
    }

    #[test]
    fn what_cannot_be_done_is_refused_by_name_and_without_the_password() {
        for (text, reason) in [
            ("sslmode=sometimes", "sslmode \"sometimes\" is not supported"),
            ("sslmode=require sslrootcert=system", "weak sslmode"),
            ("krbsrvname=x", "Kerberos is not built"),
            ("service=x", "service files are not read"),
            ("passfile=x", "password files are not read"),
            ("sslnegotiation=direct", "sslnegotiation: only \"postgres\""),
            ("target_session_attrs=prefer-standby", "target_session_attrs"),
            ("client_encoding=latin1", "client_encoding must be"),
            ("connect_timeout=soon", "not a number of seconds"),
            ("host=a,b,c port=1,2", "could not match 2 port numbers to 3 hosts"),
            ("port=x", "port is not"),
            ("hostaddr=127.0.0.1 host=a sslmode=verify-full", "hostaddr beside host"),
        ] {
            let error = parse(&format!("{text} password=hush")).err().unwrap();
            assert!(error.contains(reason), "{text}: {error}");
            assert!(!error.contains("hush"), "{error}");
        }
        // Passwords that were not quoted as they have to be.
        for text in [
            "password=my hush host=a",
            "postgres://me:hush/x@db.test/spire",
            "postgres://me:77/hush@db.test/spire",
            "postgres://me:7?hush@db.test/spire",
            "postgres://db.test:hush/spire",
        ] {
            let error = parse(text).err().unwrap();
            assert!(!error.contains("hush") && !error.contains("77"), "{text}: {error}");
        }
    }
}
