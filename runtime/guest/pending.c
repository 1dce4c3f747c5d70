#include "hyper.h"
#include <unistd.h>
#include <sys/reboot.h>
struct container container;
bool parse_start(const struct json *j,const struct json_node*a,struct start_request*r,struct fault*f){(void)j;(void)a;(void)r;return refuse(f,GENERIC,"not there yet");}
bool parse_exec(const struct json *j,const struct json_node*a,struct exec_request*r,struct fault*f){(void)j;(void)a;(void)r;return refuse(f,GENERIC,"not there yet");}
bool parse_read(const struct json *j,const struct json_node*a,struct read_request*r,struct fault*f){(void)j;(void)a;(void)r;return refuse(f,GENERIC,"not there yet");}
bool parse_identity(const struct json *j,const struct json_node*a,struct identity_request*r,struct fault*f){(void)j;(void)a;(void)r;return refuse(f,GENERIC,"not there yet");}
bool container_start(struct port*p,const struct start_request*r,struct fault*f){(void)p;(void)r;return refuse(f,GENERIC,"not there yet");}
bool container_exec(struct port*p,const struct exec_request*r,struct fault*f){(void)p;(void)r;return refuse(f,GENERIC,"not there yet");}
bool container_signal(int s,bool a,struct fault*f){(void)s;(void)a;return refuse(f,GENERIC,"not there yet");}
bool streams_resize(uint32_t s,int r,int c,struct fault*f){(void)s;(void)r;(void)c;return refuse(f,GENERIC,"not there yet");}
bool identity_set(const struct identity_request*r,struct fault*f){(void)r;return refuse(f,GENERIC,"not there yet");}
void stats_read(const struct read_request*r,struct buffer*o){(void)r;(void)o;}
int64_t container_oom_kills(void){return 0;}
void container_exited(pid_t p,int s){(void)p;(void)s;}
int container_step(void){return -1;}
void machine_end(const char*m){(void)m;sync();reboot(RB_AUTOBOOT);for(;;)pause();}
void log_open(int f){(void)f;} bool log_pump(void){return false;}
void streams_open(int f){(void)f;} bool streams_pump(void){return false;}
