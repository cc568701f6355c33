for name in redis-password "$@"; do
  if ! test -r "/run/secrets/$name" || ! test -s "/run/secrets/$name"; then
    echo "refused: the secret $name is empty, or user $(id -u):$(id -g) cannot read it; see docs/workers.md" >&2
    exit 2
  fi
done
set -e
umask 077
hash="$(tr -d '\r\n' < /run/secrets/redis-password | sha256sum | cut -d ' ' -f 1)"
{
  echo "user default on #$hash ~* &* +@all"
  echo "dir /data"
  echo "appendonly yes"
  echo "appendfsync always"
  echo "save 900 1"
  echo "maxmemory $REDIS_MEMORY"
  echo "maxmemory-policy noeviction"
  if test "$#" -gt 0; then
    echo "port 0"
    echo "tls-port 6379"
    echo "tls-cert-file /run/secrets/redis-cert"
    echo "tls-key-file /run/secrets/redis-key"
    echo "tls-ca-cert-file /run/secrets/redis-ca"
    echo "tls-auth-clients no"
  fi
} > /tmp/redis.conf
exec redis-server /tmp/redis.conf
