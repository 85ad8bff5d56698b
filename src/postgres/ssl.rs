//! Owns what a connection string says of TLS: libpq's `ssl…` parameters, by their names in PostgreSQL's manual
//! ("Database Connection Control Functions"). One that is not followed here is refused by name: a check that somebody
//! asked for and that is not made would be worse than no connection.

/// libpq's `sslmode`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SslMode {
    /// Without TLS.
    Disable,
    /// With TLS if the server does not let it in without.
    Allow,
    /// With TLS if the server offers it.
    #[default]
    Prefer,
    /// With TLS; the certificate is checked as by `verify-ca` where a file of root certificates is.
    Require,
    /// With TLS, and a certificate that a known authority has signed.
    VerifyCa,
    /// That, and the certificate is one of this host.
    VerifyFull,
}

impl SslMode {
    const NAMES: &[(&str, SslMode)] = &[
        ("disable", SslMode::Disable),
        ("allow", SslMode::Allow),
        ("prefer", SslMode::Prefer),
        ("require", SslMode::Require),
        ("verify-ca", SslMode::VerifyCa),
        ("verify-full", SslMode::VerifyFull),
    ];

    /// As libpq spells it.
    pub fn parse(text: &str) -> Option<SslMode> {
        SslMode::NAMES.iter().find(|(name, _)| *name == text).map(|(_, mode)| *mode)
    }

    /// As libpq spells it.
    pub fn name(self) -> &'static str {
        SslMode::NAMES.iter().find(|(_, mode)| *mode == self).map_or("", |(name, _)| name)
    }

    /// A connection without TLS is not to be used.
    pub fn needs_tls(self) -> bool {
        matches!(self, SslMode::Require | SslMode::VerifyCa | SslMode::VerifyFull)
    }
}

/// What one connection string says of TLS; what it does not say is left to the environment and libpq's defaults.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SslParameters {
    /// Which connections are good enough.
    pub sslmode: Option<SslMode>,
    /// File of the authorities that are trusted, or `system`.
    pub sslrootcert: Option<String>,
    /// File of certificates that were revoked.
    pub sslcrl: Option<String>,
    /// The client's own certificate.
    pub sslcert: Option<String>,
    /// Its key.
    pub sslkey: Option<String>,
}

/// Others of libpq, and the value with which each asks for nothing that is not done anyway.
const WITHOUT_EFFECT: &[(&str, &str)] = &[
    ("sslcertmode", "allow"),
    ("sslcompression", "0"),
    ("sslnegotiation", "postgres"),
    ("sslsni", "1"),
    ("ssl_min_protocol_version", "TLSv1.2"),
];

impl SslParameters {
    /// Takes one parameter in; others than those of TLS are passed over.
    ///
    /// # Errors
    /// What is wrong, as the rest of a sentence that begins with the connection string.
    pub fn take(&mut self, name: &str, value: &str) -> Result<(), String> {
        let text = (!value.is_empty()).then(|| value.to_owned());
        match name {
            "sslmode" => {
                let unknown = "has an sslmode that libpq does not know";
                self.sslmode = text.map(|text| SslMode::parse(&text).ok_or(unknown)).transpose()?;
            }
            // As JDBC spells it, which libpq takes too.
            "ssl" if value == "true" => self.sslmode = Some(SslMode::Require),
            "sslrootcert" => self.sslrootcert = text,
            "sslcrl" => self.sslcrl = text,
            "sslcert" => self.sslcert = text,
            "sslkey" => self.sslkey = text,
            _ if WITHOUT_EFFECT.contains(&(name, value)) => {}
            _ if name.starts_with("ssl") || name == "requiressl" => {
                let shown: String =
                    name.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_').take(40).collect();
                return Err(format!("asks for {shown}, which pgmahout does not follow in this way"));
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(pairs: &[(&str, &str)]) -> Result<SslParameters, String> {
        let mut parameters = SslParameters::default();
        pairs.iter().try_for_each(|(name, value)| parameters.take(name, value))?;
        Ok(parameters)
    }

    #[test]
    fn modes_have_libpqs_names() {
        for name in ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"] {
            assert_eq!(SslMode::parse(name).unwrap().name(), name);
            let needs_tls = !["disable", "allow", "prefer"].contains(&name);
            assert_eq!(SslMode::parse(name).unwrap().needs_tls(), needs_tls, "{name}");
        }
        for none in ["", "Require", "verify", "yes"] {
            assert_eq!(SslMode::parse(none), None);
        }
    }

    #[test]
    fn parameters_are_taken_or_refused_by_name() {
        let all = taken(&[
            ("application_name", "x"),
            ("sslmode", "verify-ca"),
            ("sslrootcert", "ca.crt"),
            ("sslcrl", "ca.crl"),
            ("sslcert", "me.crt"),
            ("sslkey", "me.key"),
            ("sslsni", "1"),
            ("sslcompression", "0"),
        ]);
        let wanted = SslParameters {
            sslmode: Some(SslMode::VerifyCa),
            sslrootcert: Some("ca.crt".into()),
            sslcrl: Some("ca.crl".into()),
            sslcert: Some("me.crt".into()),
            sslkey: Some("me.key".into()),
        };
        assert_eq!(all.unwrap(), wanted);
        assert_eq!(taken(&[("ssl", "true")]).unwrap().sslmode, Some(SslMode::Require));
        assert_eq!(taken(&[("sslmode", ""), ("sslrootcert", "")]).unwrap(), SslParameters::default());
        assert_eq!(taken(&[("sslmode", "yes")]).unwrap_err(), "has an sslmode that libpq does not know");
        for (name, value) in [
            ("sslcrldir", "/x"),
            ("sslpassword", "hunter2"),
            ("sslsni", "0"),
            ("sslnegotiation", "direct"),
            ("ssl_max_protocol_version", "TLSv1.2"),
            ("ssl_min_protocol_version", "TLSv1.3"),
            ("requiressl", "1"),
            ("ssl", "false"),
            ("sslfactory", "x"),
        ] {
            let why = taken(&[(name, value)]).unwrap_err();
            assert_eq!(why, format!("asks for {name}, which pgmahout does not follow in this way"));
        }
    }
}
