"""Django's backend for MariaDB, with a driver that needs no compiler."""

import pymysql

# The oldest version of the usual driver that Django accepts, which this one is not.
pymysql.version_info = (2, 2, 1, "final", 0)
pymysql.install_as_MySQLdb()
